"""The Open Inference Protocol of the router: another door to the same generation."""
