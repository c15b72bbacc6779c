"""Channels to other services: one place for their options."""

import grpc.aio

from hekaton.rpc.interceptors import StreamClientInterceptor, UnaryClientInterceptor

KEEPALIVE_MS = 30_000
MAX_MESSAGE_BYTES = 64 << 20

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(address: str, api_key: str = "") -> grpc.aio.Channel:
    """A channel to HOST:PORT or unix:PATH. Use one per target; close it (it is an async context manager)."""
    interceptors = [UnaryClientInterceptor(api_key), StreamClientInterceptor(api_key)]
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=interceptors)
