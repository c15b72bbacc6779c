"""Breaks a local pool on a schedule while a checked load runs: `hekaton chaos`."""
