"""Time and memory beside peers. One file a table; `python -m benchmarks --help`."""
