"""Messages that no client should send, to every RPC of a real pool."""
