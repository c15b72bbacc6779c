"""`hekaton bench serve` against a pool of emulated devices."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from fakes.commands import HEKATON
from hekaton.cli.supervisor import ANY_PORT, Stack, StackOptions
from hekaton.client import Client
from hekaton.errors import HekatonError, ModelNotFound
from hekaton.facts import Slo
from hekaton.load.api import Ask, GrpcApi, OipApi, OpenAiApi
from hekaton.rpc.channel import open_channel

WORKLOAD = "arrival_seconds,model,input_tokens,output_tokens\n0.0,m00,40,20\n0.1,m08,5000,20\n0.2,m00,10,30\n"


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Stack]:
    options = StackOptions(device="emulated:h800", device_memory="72GB", time_scale=0.1, http_listen=ANY_PORT)
    async with Stack(options, print) as stack, Client(stack.address) as client:
        await client.register_model("m00", "emulated:qwen2.5-7b")
        await client.register_model("m08", "emulated:llama-2-13b")
        yield stack


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *HEKATON, "bench", "serve", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_workload_is_served_measured_and_drawn(pool: Stack, tmp_path: Path) -> None:
    address = pool.address
    asked, picture = tmp_path / "asked.csv", tmp_path / "times.svg"
    asked.write_text(WORKLOAD)
    status, out, err = await bench(
        "--address", address, "--workload", str(asked), "--json", "--svg", str(picture), "--time-scale", "0.5"
    )
    assert status == 0, err
    report = json.loads(out)
    assert (report["requests"], report["finished"], report["tokens"]) == (3, 3, 70)
    assert report["models"]["m08"]["requests"] == 1
    assert 0 <= report["token_attainment"] <= 1
    assert "1 of 3 requests are cut" in err
    assert picture.read_text().startswith("<?xml")

    asked.write_text(WORKLOAD + "0.3,m99,1,1\n")
    status, out, err = await bench("--address", address, "--workload", str(asked))
    assert (status, out) == (1, "")
    assert "does not serve m99; it serves m00, m08" in err


async def test_the_same_workload_goes_over_every_protocol(pool: Stack, tmp_path: Path) -> None:
    asked = tmp_path / "asked.csv"
    asked.write_text(WORKLOAD)
    common = ("--address", pool.address, "--workload", str(asked), "--json")
    for api in (["oip"], ["openai", "--http-url", f"http://{pool.http_address}"]):
        status, out, err = await bench(*common, "--api", *api)
        assert status == 0, err
        report = json.loads(out)
        assert (report["requests"], report["finished"], report["tokens"], report["failed"]) == (3, 3, 70, {})
    status, _, err = await bench(*common, "--api", "openai")
    assert (status, "--http-url" in err) == (2, True)


async def test_what_a_router_refuses_has_the_same_name_over_every_protocol(pool: Stack) -> None:
    ask = Ask("none", (10, 11), 5, Slo(1.0, 0.1), 10.0)
    async with (
        open_channel(pool.address) as channel,
        Client(pool.address) as client,
        httpx2.AsyncClient() as http,
    ):
        for api in (GrpcApi([client]), OipApi([channel], {}), OpenAiApi(http, [f"http://{pool.http_address}"])):
            with pytest.raises(ModelNotFound, match="none"):
                await anext(api.tokens(ask))
        with pytest.raises(HekatonError) as raised:
            await anext(OpenAiApi(http, [f"http://{pool.address}"]).tokens(ask))
        assert raised.value.code.name == "UNAVAILABLE", "it speaks gRPC"
