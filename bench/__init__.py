"""Measurements: each is a ratio of two things in one run. `python -m bench.NAME`."""
