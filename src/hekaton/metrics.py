"""What Prometheus scrapes: `/metrics` of a service, on a port of its own.

Names have the suffixes that dashboards know from vLLM. A service keeps its counters in a registry of its own and tells
its gauges when it is scraped, so that nothing has to be kept up to date between scrapes.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Thread
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hekaton.config import Settings
from hekaton.errors import InvalidArgument
from hekaton.rpc.server import check_listen, host_and_port

log = structlog.get_logger(__name__)
NAMESPACE = "hekaton"
MODEL = "model_name"
MAX_MODELS = 1000
OTHER = "other"
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Gauges(Collector):
    """Metrics that are told when they are asked for; `tell` runs in the scraper's thread and must not wait."""

    def __init__(self, tell: Callable[[], Iterable[Metric]]) -> None:
        self._tell = tell

    def collect(self) -> Iterable[Metric]:
        return self._tell()


class ModelNames:
    """Values of the label `model_name`, bounded in number: the first so many, then "other"."""

    def __init__(self, most: int = MAX_MODELS) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, model: str) -> str:
        if model not in self._known and len(self._known) >= self._most:
            return OTHER
        self._known.add(model)
        return model


def counter(registry: CollectorRegistry, name: str, documentation: str, *labels: str) -> Counter:
    return Counter(name, documentation, labels, namespace=NAMESPACE, registry=registry)


def histogram(registry: CollectorRegistry, name: str, documentation: str, *labels: str) -> Histogram:
    return Histogram(name, documentation, labels, namespace=NAMESPACE, registry=registry, buckets=LATENCY_S)


def gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", documentation, value=value)


def gauges(name: str, documentation: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """One gauge for each value of a label."""
    family = GaugeMetricFamily(f"{NAMESPACE}_{name}", documentation, labels=[label])
    for value, measured in values.items():
        family.add_metric([value], measured)
    return family


def counters(name: str, documentation: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """One counter for each value of a label."""
    family = CounterMetricFamily(f"{NAMESPACE}_{name}", documentation, labels=[label])
    for value, counted in values.items():
        family.add_metric([value], counted)
    return family


def tell_of_process(registry: CollectorRegistry) -> None:
    """What every service tells of itself: memory, file descriptors, processor time, and the tasks of its event loop."""
    loop = asyncio.get_running_loop()
    ProcessCollector(registry=registry)
    tell = partial(gauge, "event_loop_tasks", "Tasks of this process that have not ended.")
    registry.register(Gauges(lambda: [tell(len(asyncio.all_tasks(loop)))]))


@contextmanager
def serving_metrics(settings: Settings, registry: CollectorRegistry) -> Iterator[str]:
    """Serves them until the end of the block, in a thread; its address, empty if it is off.

    Raises InvalidArgument if the address is refused or taken.
    """
    if not settings.metrics_listen:
        yield ""
        return
    tls = settings.peer_tls
    check_listen("metrics_listen", settings.metrics_listen, settings.insecure_listen or tls is not None)
    host, port = host_and_port("metrics_listen", settings.metrics_listen)
    tell_of_process(registry)
    try:
        server, thread = _start(settings, host, port, registry)
    except OSError as error:
        raise InvalidArgument(f"cannot listen on {settings.metrics_listen}: {error}; is the port taken?") from error
    address = f"{host}:{server.server_port}"
    log.info("listening", metrics=address)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _start(settings: Settings, host: str, port: int, registry: CollectorRegistry) -> tuple[WSGIServer, Thread]:
    """With TLS as one of the pool's own services: who scrapes shows a certificate of the pool's authority."""
    if settings.peer_tls is None:
        return start_http_server(port, host, registry)
    files = (str(settings.tls_cert), str(settings.tls_key), str(settings.tls_ca))
    server, thread = start_http_server(port, host, registry, *files, client_auth_required=True)
    if isinstance(listener := server.socket, ssl.SSLSocket):
        settings.peer_tls.follow(listener.context)
        # Left to each connection's own thread: one who says nothing holds up nobody.
        vars(listener)["do_handshake_on_connect"] = False
    return server, thread
