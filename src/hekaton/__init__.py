"""hekaton: many language models from few accelerators, scheduled by the token."""

__version__ = "0.1.0"
