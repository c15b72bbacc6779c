"""Messages that no client should send, to every RPC of a real pool, in short. The long run is `make fuzz`."""

import json
import subprocess
import sys
from random import Random

import pytest
from bench.fuzz.calls import SERVICES, label
from bench.fuzz.messages import Known, Maker
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from fakes.commands import TIMEOUT_S, environment
from hekaton.v1 import inference_pb2

MESSAGES = 2000


@pytest.mark.timeout(600)
def test_a_pool_survives_whatever_is_sent_to_it() -> None:
    """In so short a time memory still grows: it may by as much again."""
    command = (
        sys.executable,
        "-m",
        "bench.fuzz",
        "--device",
        "emulated:h800",
        "--rounds",
        "3",
        "--bound",
        "1",
        "--json",
    )
    done = subprocess.run(
        [*command, "--messages", str(MESSAGES)], env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (done.returncode, found["faults"], found["grown"]) == (0, [], [])
    assert found["messages"] >= MESSAGES
    assert {rpc.split(".")[0] for rpc in found["codes"]} == set(SERVICES)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= {code for codes in found["codes"].values() for code in codes}


def test_the_http_api_answers_as_its_document_says() -> None:
    command = (sys.executable, "-m", "bench.fuzz.http", "--examples", "15", "--phases", "fuzzing")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "Operations:       6 selected" in done.stdout


def test_every_rpc_is_sent_sound_messages_and_others() -> None:
    maker = Maker(Random(1), Known({"model": ["m"]}))
    for service in SERVICES.values():
        for method in service.methods:
            decoded = {_is_sound(maker.request(method.input_type), method.input_type) for _ in range(200)}
            assert decoded == {True, False}, label(method)


def test_the_same_numbers_make_the_same_messages() -> None:
    made = [
        [maker.request(inference_pb2.GenerateRequest.DESCRIPTOR) for _ in range(50)]
        for maker in (Maker(Random(5), Known({})), Maker(Random(5), Known({})))
    ]
    assert made[0] == made[1]


def _is_sound(data: bytes, kind: Descriptor) -> bool:
    try:
        GetMessageClass(kind).FromString(data)
    except DecodeError:
        return False
    return True
