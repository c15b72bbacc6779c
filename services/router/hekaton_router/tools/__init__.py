"""Tools that a model may ask its client to call: shown to it, read out of its text, and demanded of it."""
