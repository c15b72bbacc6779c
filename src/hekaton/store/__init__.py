"""What the pool keeps in Redis: one class per structure, the keys in `keys.py`, the scripts in `lua/`."""
