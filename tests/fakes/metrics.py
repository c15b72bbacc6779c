"""Scraping, as Prometheus does it: with the official parser."""

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, str, frozenset[tuple[str, str]]]


def sample(service: str, name: str, **labels: str) -> Key:
    """One series of a service."""
    return service, f"hekaton_{name}", frozenset(labels.items())


def free_address() -> str:
    """Where a service may tell its metrics."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


async def scrape(addresses: Mapping[str, str], tls: ssl.SSLContext | None = None) -> dict[Key, float]:
    """The value of every series, by service. Raises OSError."""
    values: dict[Key, float] = {}
    for service, address in addresses.items():
        for family in text_string_to_metric_families(await asyncio.to_thread(_read, address, tls)):
            for one in family.samples:
                values[service, one.name, frozenset(one.labels.items())] = one.value
    return values


def _read(address: str, tls: ssl.SSLContext | None) -> str:
    url = f"{'https' if tls else 'http'}://{address}/metrics"
    with urllib.request.urlopen(url, timeout=10, context=tls) as answer:
        return str(answer.read().decode())
