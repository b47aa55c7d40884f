"""Where the README's numbers come from: `python -m benchmarks`, or one of them as `python -m benchmarks.NAME`.

Each module prints a table with ratios against a rival measured in the same run, and its passport.
"""
