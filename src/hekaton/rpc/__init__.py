"""gRPC plumbing that every service shares: lifecycle, interceptors, health, channels, translation."""
