"""A whole pool with TLS between all of its services, as `hekaton up --tls` starts it."""

from pathlib import Path

import pytest

from fakes.commands import hekaton, running_up
from hekaton.client import Client, ClientTls
from hekaton.errors import Unavailable
from hekaton.rpc.channel import open_channel
from hekaton.rpc.health import is_serving
from hekaton.rpc.tls import CertificateFiles

EMULATED = ("--device", "emulated:h800", "--device-memory", "80GiB", "-m", "seven=emulated:qwen2.5-7b")


async def test_a_pool_serves_over_tls_only_and_its_services_show_each_other_certificates(tmp_path: Path) -> None:
    files = CertificateFiles.of(tmp_path)
    with running_up("--tls", str(tmp_path), *EMULATED) as up:
        trusting = ("--tls-ca", str(files.ca), "generate", "seven", "hello", "--max-tokens", "5")
        done = hekaton(*trusting, "--address", up.address)
        assert (done.returncode, done.stderr[:16]) == (0, "5 tokens, length")
        async with Client(up.address) as plain:
            with pytest.raises(Unavailable, match="tls_ca"):
                await plain.pool()
        async with Client(up.address, tls=ClientTls(files.ca)) as client:
            worker = (await client.pool()).workers[0].address
        async with open_channel(worker, tls=ClientTls(files.ca)) as stranger:
            assert not await is_serving(stranger)
        async with open_channel(worker, tls=ClientTls(files.ca, files.cert, files.key)) as member:
            assert await is_serving(member, timeout_s=30)
