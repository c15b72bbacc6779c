"""A load from its plan to its samples."""

import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx2

from hekaton.client import Client
from hekaton.config import API_KEY_VARIABLE, ENV_PREFIX, PUBLIC_CA, tls_of
from hekaton.errors import InvalidArgument
from hekaton.facts import Slo
from hekaton.load.api import Api, ApiName, GrpcApi, OipApi, OpenAiApi
from hekaton.load.driver import drive
from hekaton.load.fit import fitted, ready, slos
from hekaton.load.sample import Sample
from hekaton.rpc.channel import open_channel
from hekaton.sim.workload import Arrival

Asked = Callable[[Sequence[str]], Sequence[Arrival]]
"""The requests, once it is known which models there are."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Seconds are the workload's own; `time_scale` stretches arrivals and objectives on the clock."""

    asked: Asked
    models: Sequence[str] = ()
    """All that the pool serves if empty."""
    ttft_s: float | None = None
    tbt_s: float | None = None
    """None is each model's own."""
    slos: Mapping[str, Slo] = field(default_factory=dict)
    """Of single models."""
    timeout_s: float = 600.0
    """Of one request, on the clock."""
    seed: int = 0
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a caller is told while the load runs."""

    begins: Callable[[int, int], None] = lambda requests, shortened: None
    """How many requests there are, and how many had to be cut to their model's context."""
    ended: Callable[[Sample], None] = lambda sample: None


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a pool is reached, and by which protocol requests are sent."""

    addresses: Sequence[str]
    """Of routers' gRPC port, which is also asked for the models."""
    api: ApiName = ApiName.GRPC
    urls: Sequence[str] = ()
    """Of routers' HTTP port, for OpenAI's API."""

    def __post_init__(self) -> None:
        if (self.api is ApiName.OPENAI) != bool(self.urls):
            raise InvalidArgument("--api openai and --http-url go together, such as http://127.0.0.1:8000")


async def load(doors: Doors, plan: LoadPlan, watcher: Watcher | None = None) -> list[Sample]:
    """Sends the whole plan to a pool, and returns when the last request has ended.

    Raises HekatonError if the load cannot begin; what becomes of a request stands in its sample.
    """
    watcher = watcher or Watcher()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address)) for address in doors.addresses]
        models = ready(await clients[0].list_models(), plan.models)
        arrivals, shortened = fitted(plan.asked(sorted(models)), models)
        watcher.begins(len(arrivals), shortened)
        return await drive(
            await _api(doors, clients, stack),
            arrivals,
            slos(models, plan.ttft_s, plan.tbt_s, plan.slos, plan.time_scale),
            timeout_s=plan.timeout_s,
            seed=plan.seed,
            time_scale=plan.time_scale,
            ended=watcher.ended,
        )


async def _api(doors: Doors, clients: Sequence[Client], stack: AsyncExitStack) -> Api:
    """Open as long as `stack` is. Keys and certificates are those of the environment, as for the native client."""
    key = os.environ.get(API_KEY_VARIABLE, "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if doors.api is ApiName.OPENAI:
        http = httpx2.AsyncClient(
            headers=headers, verify=_trusted(os.environ), limits=httpx2.Limits(), follow_redirects=False
        )
        return OpenAiApi(await stack.enter_async_context(http), doors.urls)
    if doors.api is ApiName.OIP:
        opened = [open_channel(one, tls=tls_of(os.environ)) for one in doors.addresses]
        return OipApi([await stack.enter_async_context(channel) for channel in opened], headers)
    return GrpcApi(clients)


def _trusted(environment: Mapping[str, str]) -> ssl.SSLContext:
    """What `tls_of` says, for HTTP. Raises InvalidArgument for files that cannot be used."""
    ca, cert, key = (environment.get(f"{ENV_PREFIX}TLS_{part}", "") for part in ("CA", "CERT", "KEY"))
    try:
        context = ssl.create_default_context(cafile=ca if ca and ca != PUBLIC_CA else None)
        if cert:
            context.load_cert_chain(cert, key or None)
    except OSError as error:
        raise InvalidArgument(f"the certificates of {ENV_PREFIX}TLS_CA, _CERT and _KEY: {error}") from error
    return context
