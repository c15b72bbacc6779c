"""What the policies promise, measured in the simulator: `python -m bench.scheduling PART...`."""
