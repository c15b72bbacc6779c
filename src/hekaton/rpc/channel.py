"""Channels to other services: one place for their options."""

import asyncio
from typing import Any, Self

import grpc
import grpc.aio

from hekaton.rpc.interceptors import StreamClientInterceptor, UnaryClientInterceptor
from hekaton.rpc.tls import ClientTls, is_unix

KEEPALIVE_MS = 30_000
MAX_MESSAGE_BYTES = 64 << 20
KEPT_CHANNELS = 2

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(address: str, api_key: str = "", tls: ClientTls | None = None) -> grpc.aio.Channel:
    """A channel to HOST:PORT or unix:PATH. Use one per target; close it (it is an async context manager)."""
    if tls is None or is_unix(address):
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=_interceptors(api_key))
    return SecureChannel(address, api_key, tls)


class SecureChannel(grpc.aio.Channel):
    """Calls go over a connection that was made with the certificates of now.

    Those of before the last renewal end by themselves, those of before the one before it are ended.
    """

    def __init__(self, address: str, api_key: str, tls: ClientTls) -> None:
        self._address = address
        self._api_key = api_key
        self._tls = tls
        self._pems = tls.current()
        self._channels = [self._open()]
        self._closing: set[asyncio.Task[None]] = set()

    def _open(self) -> grpc.aio.Channel:
        options = (*CHANNEL_OPTIONS, *self._tls.options())
        credentials = self._tls.credentials(self._pems)
        return grpc.aio.secure_channel(
            self._address, credentials, options=options, interceptors=_interceptors(self._api_key)
        )

    def _now(self) -> grpc.aio.Channel:
        if (pems := self._tls.current()) is not self._pems:
            self._pems = pems
            self._channels.append(self._open())
            if len(self._channels) > KEPT_CHANNELS:
                task = asyncio.create_task(self._channels.pop(0).close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._channels[-1]

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return lambda *call, **options: self._now().unary_unary(*args, **kwargs)(*call, **options)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return lambda *call, **options: self._now().unary_stream(*args, **kwargs)(*call, **options)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return lambda *call, **options: self._now().stream_unary(*args, **kwargs)(*call, **options)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return lambda *call, **options: self._now().stream_stream(*args, **kwargs)(*call, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(*(channel.close(grace) for channel in self._channels), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._now().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._now().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._now().channel_ready()


def _interceptors(api_key: str) -> list[grpc.aio.ClientInterceptor]:
    return [UnaryClientInterceptor(api_key), StreamClientInterceptor(api_key)]
