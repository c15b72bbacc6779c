"""Triton's own client, unmodified, against a pool with TLS and keys."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2

from fakes.router import eventually
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client, SamplingOptions
from hekaton.facts import RequestState, Tenant
from hekaton.oip import open_inference_pb2
from hekaton.rpc.tls import CertificateFiles
from hekaton.store.connect import connect
from hekaton.store.requests import Requests
from hekaton.store.tenants import Tenants

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".triton-client"
PROGRAM = ROOT / "tests" / "fakes" / "triton_client.py"
PROMPT = "once upon a time"
Seen = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(), reason="Triton's client is not installed: make .triton-client/.done, as `make test` does"
)


@pytest_asyncio.fixture
async def pool(tmp_path: Path) -> AsyncIterator[tuple[Stack, str]]:
    """A pool that serves a model named m, and an administrator's key."""
    options = StackOptions(device="emulated:h800", device_memory="80GB", auth=True, tls_dir=tmp_path)
    async with Stack(options, print) as stack, connect(stack.redis_url) as redis:
        await Tenants(redis).put(Tenant("root", admin=True))
        key = await Tenants(redis).create_key("root")
        async with Client(stack.address, api_key=key, tls=stack.tls) as client:
            await client.register_model("m", "emulated:qwen2.5-7b")
        yield stack, key


async def run(address: str, ca: Path, key: str) -> Seen:
    """What the program saw."""
    arguments = (address, str(ca), key, "m")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *arguments,
        env=os.environ | {"PYTHONPATH": str(PACKAGES)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    seen: Seen = json.loads(out)
    return seen


async def test_tritons_client_does_all_that_is_served(pool: tuple[Stack, str], tmp_path: Path) -> None:
    stack, key = pool
    seen = await run(stack.address, CertificateFiles.of(tmp_path).ca, key)
    async with Client(stack.address, api_key=key, tls=stack.tls) as client:
        native = await client.complete("m", PROMPT, SamplingOptions(max_tokens=20, seed=7))
    outputs = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"]
    assert seen["server"] == [True, True, True, False, "hekaton", outputs]
    assert seen["whole"] == {
        "id": "1",
        "text": native.text,
        "finish_reason": "length",
        "tokens": [len(PROMPT), 20],
    }
    for answers in seen["streams"].values():
        assert len(answers) > 1
        assert "".join(text for text, _ in answers) == native.text
        assert [final for _, final in answers] == [False] * (len(answers) - 1) + [True]
    assert seen["repository"] == [["m", "READY"]]
    check_refusals(seen)
    check_protocol(seen["protocol"])

    async with connect(stack.redis_url) as redis:

        async def state() -> RequestState | None:
            stored = await Requests(redis).load(seen["cancelled"])
            return stored.summary.state if stored else None

        await eventually(state, lambda found: found is RequestState.CANCELLED)


def check_refusals(seen: Seen) -> None:
    expected = {
        "no key": ("UNAUTHENTICATED", "an API key is needed"),
        "unknown model": ("NOT_FOUND", "nobody"),
        "priority": ("INVALID_ARGUMENT", "priority is not supported"),
        "sequence": ("INVALID_ARGUMENT", "sequence_"),
        "parameter": ("INVALID_ARGUMENT", "lora_name is not supported"),
        "shape": ("INVALID_ARGUMENT", "must have the shape [1], not [2]"),
        "stream": ("INVALID_ARGUMENT", "ModelStreamInfer"),
        "config": ("INVALID_ARGUMENT", "'config' is not supported"),
        "no such call": ("UNIMPLEMENTED", ""),
    }
    for name, (code, message) in expected.items():
        status, told = seen["refused"][name]
        assert (status, message in told) == (f"StatusCode.{code}", True), told
    (status, told), (strict_status, strict_told) = seen["refused_in_streams"]
    assert (status, strict_status) == (None, "StatusCode.NOT_FOUND")
    assert "nobody" in told
    assert told == strict_told


def check_protocol(theirs_in_hex: str) -> None:
    """Every name, number and type of ours is the client's."""
    theirs, ours = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    theirs.ParseFromString(bytes.fromhex(theirs_in_hex))
    open_inference_pb2.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == theirs.package
    known = {message.name: shape(message) for message in theirs.message_type}
    for message in ours.message_type:
        assert shape(message) == known[message.name], message.name
    (service,), (own,) = theirs.service, ours.service
    calls = [(one.name, one.input_type, one.output_type, one.client_streaming) for one in service.method]
    assert own.name == service.name
    for one in own.method:
        assert (one.name, one.input_type, one.output_type, one.client_streaming) in calls


def shape(message: descriptor_pb2.DescriptorProto) -> object:
    fields = {(one.name, one.number, one.type, one.label, one.type_name) for one in message.field}
    return fields, {nested.name: shape(nested) for nested in message.nested_type}
