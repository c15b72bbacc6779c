"""TLS between services: who is let in, who is told what, and certificates that change."""

import shutil
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import URLError

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from fakes.tls import EXPIRED, certificates, member, pool_settings, replace
from hekaton.errors import InvalidArgument
from hekaton.metrics import serving_metrics
from hekaton.rpc.channel import open_channel
from hekaton.rpc.server import serving
from hekaton.rpc.tls import CertificateFiles, ClientTls, ServerTls, TlsFiles, explain


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return certificates(tmp_path / "pool")


@pytest.fixture
def others(tmp_path: Path) -> CertificateFiles:
    """Of another authority."""
    return certificates(tmp_path / "others")


@asynccontextmanager
async def internal(files: CertificateFiles, **more: object) -> AsyncIterator[str]:
    """A service of the pool; its address."""
    async with serving(pool_settings(files, **more), []) as server:
        yield server.address


async def ask(channel: grpc.aio.Channel) -> None:
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)


async def refusal(address: str, tls: ClientTls | None) -> str:
    """What a peer is told that is not let in: UNAVAILABLE at the handshake, and what that means."""
    async with open_channel(address, tls=tls) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return explain(caught.value.details() or "", address)


async def test_a_stranger_is_refused_on_an_internal_port(files: CertificateFiles, others: CertificateFiles) -> None:
    async with internal(files) as address:
        assert "tls_cert" in await refusal(address, ClientTls(files.ca))
        assert "tls_cert" in await refusal(address, ClientTls(files.ca, others.cert, others.key))
        async with open_channel(address, tls=member(files)) as channel:
            await ask(channel)


async def test_a_plain_channel_is_refused_where_tls_is_served(files: CertificateFiles) -> None:
    async with internal(files) as address:
        assert "if it serves TLS" in await refusal(address, None)


async def test_a_service_that_is_not_the_pools_is_not_talked_to(
    tmp_path: Path, files: CertificateFiles, others: CertificateFiles
) -> None:
    async with internal(others) as address:
        assert "authority that is not trusted" in await refusal(address, member(files))
    elsewhere = certificates(tmp_path / "pool", "elsewhere.example")
    async with internal(elsewhere) as address:
        assert "another name" in await refusal(address, member(files))
        async with open_channel(address, tls=member(files, "elsewhere.example")) as channel:
            await ask(channel)
    async with serving(pool_settings(files).model_copy(update={"tls_cert": None}), []) as server:
        assert "does not serve TLS" in await refusal(server.address, member(files))


async def test_a_certificate_that_expires_under_a_service_is_told_of(tmp_path: Path, files: CertificateFiles) -> None:
    expired = certificates(tmp_path / "pool", valid=EXPIRED)
    pair = (expired.key.read_bytes(), expired.cert.read_bytes())
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    assert "expired: renew it" in await refusal(f"127.0.0.1:{port}", ClientTls(files.ca))
    await server.stop(0)


async def test_renewed_certificates_hold_at_once_on_both_sides(
    tmp_path: Path, files: CertificateFiles, others: CertificateFiles
) -> None:
    """A new authority, even: nothing of before is let in any more, and nobody was started anew."""
    before = CertificateFiles.of(shutil.copytree(files.ca.parent, tmp_path / "before"))
    async with internal(files) as address, open_channel(address, tls=member(files)) as channel:
        await ask(channel)
        replace(files, others)
        await ask(channel)
        assert "not trusted" in await refusal(address, member(before))
        assert "tls_cert" in await refusal(address, ClientTls(others.ca, before.cert, before.key))
        async with open_channel(address, tls=member(others)) as newcomer:
            await ask(newcomer)
        for _ in range(3):
            replace(files, certificates(others.ca.parent))
            await ask(channel)


def test_files_in_the_middle_of_a_renewal_are_left_alone(files: CertificateFiles, others: CertificateFiles) -> None:
    read = TlsFiles(files.cert, files.key, files.ca)
    before = read.current()
    shutil.copyfile(others.cert, files.cert)
    assert read.current() is before
    files.ca.unlink()
    assert read.current() is before
    shutil.copyfile(others.key, files.key)
    shutil.copyfile(others.ca, files.ca)
    assert read.current().cert == others.cert.read_bytes()


def test_files_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, files: CertificateFiles, others: CertificateFiles
) -> None:
    with pytest.raises(InvalidArgument, match=r"others/key\.pem is not the key of the certificate .*pool/cert\.pem"):
        ServerTls(files.cert, others.key)
    with pytest.raises(InvalidArgument, match=r"absent\.pem: No such file"):
        ClientTls(tmp_path / "absent.pem")
    with pytest.raises(InvalidArgument, match=r"key\.pem holds no certificate"):
        ClientTls(files.key)
    with pytest.raises(InvalidArgument, match="give key too"):
        ClientTls(files.ca, files.cert)
    certificates(tmp_path / "pool", valid=EXPIRED)
    with pytest.raises(InvalidArgument, match=r"cert\.pem expired on \d.*: renew it"):
        ServerTls(files.cert, files.key)


async def test_tls_lifts_the_rule_of_loopback(files: CertificateFiles) -> None:
    async with internal(files, listen="0.0.0.0:0") as address:
        port = address.rpartition(":")[2]
        async with open_channel(f"127.0.0.1:{port}", tls=member(files)) as channel:
            await ask(channel)


async def test_a_unix_socket_is_guarded_by_its_directory_alone(tmp_path: Path, files: CertificateFiles) -> None:
    async with internal(files, listen=f"unix:{tmp_path}/s.sock") as address:
        for tls in (None, member(files)):
            async with open_channel(address, tls=tls) as channel:
                await ask(channel)


def scrape(address: str, files: CertificateFiles, *, shows: bool) -> bytes:
    context = ssl.create_default_context(cafile=str(files.ca))
    if shows:
        context.load_cert_chain(files.cert, files.key)
    with urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=20) as answer:
        body: bytes = answer.read()
        return body


async def test_metrics_are_for_those_who_show_a_certificate(files: CertificateFiles, others: CertificateFiles) -> None:
    settings = pool_settings(files, metrics_listen="0.0.0.0:0")
    with serving_metrics(settings, CollectorRegistry()) as listening:
        address = f"127.0.0.1:{listening.rpartition(':')[2]}"
        scrape(address, files, shows=True)
        with pytest.raises((URLError, OSError)):
            scrape(address, files, shows=False)
        replace(files, others)
        scrape(address, others, shows=True)
