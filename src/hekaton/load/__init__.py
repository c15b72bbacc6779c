"""Load on a running pool: who asks what when, and what became of it."""
