"""Many initial times, each computed once, on any number of processes."""
