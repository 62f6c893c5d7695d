"""Every number in the README has a command here; ``python -m benchmarks`` lists them.

Each prints one JSON object as its last line. Where time is involved the number is a ratio against a baseline measured
in the same run.
"""
