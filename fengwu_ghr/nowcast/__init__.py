"""Nowcasts: radar echoes over the next two hours."""
