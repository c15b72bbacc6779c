"""A service's process: settings, logs, traces, server, health, reflection, signals, drain."""

import asyncio
import ipaddress
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hekaton import telemetry
from hekaton.config import Settings, load
from hekaton.errors import InvalidArgument
from hekaton.rpc.channel import KEEPALIVE_MS
from hekaton.rpc.interceptors import Guard, ServerInterceptor, let_in
from hekaton.rpc.stopping import LAST_RESORT_S, until_stopped
from hekaton.rpc.tls import ServerTls, is_unix

log = structlog.get_logger(__name__)
MAX_PORT = 65_535
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Servicer:
    """A servicer and what adds it to a server (the generated function)."""

    name: str
    """Full name, e.g. hekaton.v1.WorkerService."""
    add: Callable[[grpc.aio.Server], None]


class RunningServer:
    """A server that answers. `address` is what others reach it at."""

    def __init__(self, server: grpc.aio.Server, address: str, names: Sequence[str]) -> None:
        self._server = server
        self._names = ("", *names)
        self._health = health.aio.HealthServicer()
        self.address = address
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def set_serving(self, serving: bool) -> None:
        """Answers health checks from now on with SERVING or NOT_SERVING."""
        states = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """Says NOT_SERVING, takes no new calls, lets the running ones finish for `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


@asynccontextmanager
async def serving(
    settings: Settings, servicers: Sequence[Servicer], *, max_message_bytes: int = 64 << 20, guard: Guard = let_in
) -> AsyncIterator[RunningServer]:
    """Serves until the end of the block, then drains. Health is NOT_SERVING until the service says otherwise.

    Raises InvalidArgument if the address is refused or taken.
    """
    server = grpc.aio.server(interceptors=[ServerInterceptor(guard)], options=_server_options(max_message_bytes))
    host = settings.listen.rsplit(":", 1)[0]
    tls = None if is_unix(settings.listen) else settings.listen_tls
    check_listen("listen", settings.listen, settings.insecure_listen or tls is not None)
    try:
        port = _add_port(server, settings.listen, tls)
    except RuntimeError as error:
        raise InvalidArgument(f"cannot listen on {settings.listen}: is the port taken?") from error
    address = settings.advertise or (settings.listen if is_unix(settings.listen) else f"{host}:{port}")
    names = [servicer.name for servicer in servicers]
    running = RunningServer(server, address, names)
    for servicer in servicers:
        servicer.add(server)
    if settings.reflection:
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await running.set_serving(False)
    await server.start()
    log.info("listening", address=address)
    try:
        yield running
    finally:
        await running.drain(settings.drain_timeout_s)
        log.info("stopped")


def run(cls: type[S], main: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    """The whole life of a service's process.

    `main` returns soon after the event is set (SIGTERM or SIGINT); a second signal ends the process at once.
    """
    settings = load(cls)
    telemetry.setup_logging(cls.service, level=settings.log_level, fmt=settings.log_format)
    with telemetry.tracing(cls.service, uuid.uuid4().hex[:8], settings.otlp_endpoint):
        try:
            asyncio.run(_until_signalled(settings, main))
        except InvalidArgument as error:
            log.error(error.message)
            raise SystemExit(2) from error


async def _until_signalled(settings: S, main: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    await until_stopped(main(settings, stop), stop, settings.drain_timeout_s + LAST_RESORT_S)


def _add_port(server: grpc.aio.Server, address: str, tls: ServerTls | None) -> int:
    return server.add_secure_port(address, tls.grpc_credentials()) if tls else server.add_insecure_port(address)


def check_listen(name: str, address: str, anywhere: bool) -> None:
    """Raises InvalidArgument for an address that others could reach, unless that is safe or was asked for."""
    if not anywhere and not _is_loopback(address):
        raise InvalidArgument(
            f"{name}={address} is not loopback: set tls_cert, tls_key and tls_ca, or insecure_listen to do without TLS"
        )


def host_and_port(name: str, address: str) -> tuple[str, int]:
    """Of the setting `name`. Raises InvalidArgument for what is no HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise InvalidArgument(f"{name}={address} is no address: say HOST:PORT")
    return host.strip("[]"), int(port)


def new_id(prefix: str) -> str:
    """A name for a process that was not given one."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def _server_options(max_message_bytes: int) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 3),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client that is gone without a word is noticed, and its requests are cancelled.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 10_000),
    )


def _is_loopback(listen: str) -> bool:
    if is_unix(listen):
        return True
    host = listen.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
