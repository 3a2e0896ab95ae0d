"""The benchmarks behind `tools/benchmark.py`, one file each, with `run(options) -> list[Row]`."""
