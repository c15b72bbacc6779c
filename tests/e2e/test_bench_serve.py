"""`hekaton bench serve` against a pool of emulated devices."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from fakes.commands import HEKATON
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client

WORKLOAD = "arrival_seconds,model,input_tokens,output_tokens\n0.0,m00,40,20\n0.1,m08,5000,20\n0.2,m00,10,30\n"


@pytest_asyncio.fixture
async def address() -> AsyncIterator[str]:
    options = StackOptions(device="emulated:h800", device_memory="72GB", time_scale=0.1)
    async with Stack(options, print) as stack, Client(stack.address) as client:
        await client.register_model("m00", "emulated:qwen2.5-7b")
        await client.register_model("m08", "emulated:llama-2-13b")
        yield stack.address


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *HEKATON, "bench", "serve", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_workload_is_served_measured_and_drawn(address: str, tmp_path: Path) -> None:
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
