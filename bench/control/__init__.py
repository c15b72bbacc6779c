"""What the benches of the control plane share: services as processes, workers without an engine, clients."""
