"""One run: rounds of calls, between which the pool must serve, and hold what it held."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import grpc.aio

from bench.fuzz.calls import Caller, Tally
from bench.fuzz.messages import Known
from bench.fuzz.target import MODEL, FuzzedStack, Target, said_wrong
from hekaton.chaos.growth import Growth, Seen, growths
from hekaton.chaos.run import EMULATED, EMULATED_CLASS, _write_models
from hekaton.chaos.soak import too_much
from hekaton.cli.supervisor import StackOptions
from hekaton.client import Client
from hekaton.errors import HekatonError
from hekaton.rpc.channel import CHANNEL_OPTIONS
from hekaton.store.connect import connect
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry

ARCHITECTURE = "llama"
SHOWN = 20
"""Faults of a kind in the report."""


@dataclass(frozen=True, slots=True)
class Options:
    messages: int
    seed: int = 1
    device: str = "cpu"
    concurrency: int = 32
    rounds: int = 10
    bound: float = 0.02
    """The most that anything may grow from the first third of the rounds to the last."""
    only: str = ""
    """Services to call; all of them if empty."""
    log_dir: Path | None = None


@dataclass(slots=True)
class Report:
    device: str
    seed: int
    messages: int = 0
    calls: int = 0
    duration_s: float = 0.0
    codes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Calls by RPC and status."""
    faults: list[str] = field(default_factory=list)
    """Answers that nobody may get, what the logs have of errors that nobody foresaw, services that died."""
    growth: dict[str, Growth] = field(default_factory=dict)
    grown: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return not self.faults and not self.grown

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "held": self.held}


async def fuzz(options: Options, say: Callable[[str], None]) -> Report:
    """Raises Unavailable if the pool does not start."""
    clock = asyncio.get_running_loop().time
    report = Report(options.device, options.seed)
    emulated = options.device.startswith(EMULATED)
    # Sources of models that are no directories are looked for in a cache, and nowhere else.
    os.environ["HF_HUB_OFFLINE"] = "1"
    async with AsyncExitStack() as exit_stack:
        folder = Path(exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="hekaton-fuzz-")))
        logs = options.log_dir or folder / "logs"
        if not emulated:
            await _write_models(folder, [ARCHITECTURE])
        source = EMULATED + EMULATED_CLASS if emulated else str(folder / ARCHITECTURE)
        stack = FuzzedStack(
            StackOptions(
                device=options.device,
                device_memory="40GB" if emulated else "1MiB",
                time_scale=0.05 if emulated else None,
                host_memory="64MiB",
                restarts_s=(),
                log_dir=logs,
            ),
            report.faults.append,
        )
        await exit_stack.enter_async_context(stack)
        redis = await exit_stack.enter_async_context(connect(stack.redis_url))
        if emulated:
            # Its worker needs no memory service, the calls do.
            await stack.launch("memory", "memory-0", logs / "memory-0.log", {"segment_dir": str(folder / "segments")})
            await stack.serving(Registry(redis, Kind.MEMORY), "memory-0", bytes.decode)
        client = await exit_stack.enter_async_context(Client(stack.address))
        await client.register_model(MODEL, source, dtype="" if emulated else "float32")
        target = Target(stack, redis, client, options.bound)
        channels = {
            name: await exit_stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
            for name, address in (await stack.addresses_of(redis)).items()
            if options.only in ("", name)
        }
        tally, started_s = Tally(), clock()
        caller = Caller(options.seed, known(source), channels, tally)
        seen: list[Seen] = []
        indices = count()
        try:
            for round_ in range(1, options.rounds + 1):
                await _round(caller, tally, indices, options.messages * round_ // options.rounds, options.concurrency)
                seen.append(await target.rest(seen[1:]))
                say(f"{tally.messages} messages, {clock() - started_s:.0f} s: {_summary(tally)}")
        except HekatonError as error:
            report.faults.append(f"after {tally.messages} messages: {error.message}")
        report.faults += [*tally.faults, *said_wrong(logs)]
    report.messages, report.calls = tally.messages, sum(tally.codes.values())
    report.duration_s = round(clock() - started_s, 1)
    for (rpc, code), calls in sorted(tally.codes.items()):
        report.codes.setdefault(rpc, {})[code] = calls
    # What a pool holds before its first round is not what it holds once everything has been used.
    report.growth = growths(seen[1:])
    report.grown = [name for name, growth in report.growth.items() if too_much(name, growth, options.bound)]
    return report


async def _round(caller: Caller, tally: Tally, indices: Iterator[int], until: int, concurrency: int) -> None:
    """Calls side by side until so many messages have been sent in all."""

    async def calls() -> None:
        while tally.messages < until:
            await caller.call(next(indices))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(calls())


def known(source: str) -> Known:
    """Values that get a message further."""
    return Known(
        {
            "model": [MODEL] * 6 + ["fuzz-a", "fuzz-b", "fuzz-alias"],
            "name": ["fuzz-a", "fuzz-b"],
            "alias": ["fuzz-alias", "fuzz-b", MODEL],
            "source": [EMULATED + EMULATED_CLASS, EMULATED, source, source + "/config.json"],
            "model_name": [MODEL] * 4 + ["fuzz-a", "fuzz-alias"],
            "model_version": ["", "1"],
            "datatype": ["BYTES", "INT32", "BOOL"],
            "shape": [1],
            "bytes_contents": [b"hello"],
            "int_contents": [1],
            "bool_contents": [True],
            "raw_input_contents": [b"\x05\0\0\0hello", b"\1"],
            "InferInputTensor.name": ["text_input", "text_input", "input_ids", "stream", "return_finish_reason"],
            "InferRequestedOutputTensor.name": ["text_output", "finish_reason"],
            "ParametersEntry.key": ["max_tokens", "temperature", "seed", "triton_enable_empty_final_response"],
            "int64_param": [1, 5],
            "dtype": ["", "float32", "bfloat16"],
            "text": ["Once upon a time", "x"],
            "role": ["user", "system", "assistant", "tool"],
            "content": ["hello", "Why is the sky blue?"],
            "ids": [0, 1, 65, 255],
            "token_ids": [0, 1, 65, 255],
            "stop_token_ids": [0, 1, 255],
            "stop": ["x", "the end", "\n\n"],
            "max_tokens": [1, 2, 8, 40],
            "min_tokens": [0, 1, 2],
            "n": [1, 2, 3],
            "top_k": [0, 1, 20],
            "logprobs": [0, 1, 5],
            "temperature": [0.0, 0.5, 1.0],
            "top_p": [0.5, 1.0],
            "min_p": [0.0, 0.1],
            "repetition_penalty": [1.0, 1.2],
            "presence_penalty": [0.0, 0.5],
            "frequency_penalty": [0.0, 0.5],
            "json_schema": ['{"type": "object"}', '{"enum": ["a", 1]}', '{"type": "nothing"}', "{"],
            "parameters": [
                "",
                '{"type": "object"}',
                '{"properties": {"a": {"enum": ["\\ud800"]}}}',
                '{"a":' * 2000,
                "{",
            ],
            "arguments": ["{}", '{"a": [1, null]}', '{"a": "\\ud800"}', "[]"],
            "id": ["call-1", "123456789"],
            "tool_call_id": ["call-1", ""],
            "tool_parser": ["", "hermes", "llama3", "mistral"],
            "seconds": [0, 1, 2, 10],
            "nanos": [0, 1, 500_000_000],
            "router_id": ["router-0", "fuzz-router"],
            "worker_id": ["worker-0"],
            "holder_id": ["worker-0", "fuzz-holder"],
            "memory_address": ["", "127.0.0.1:1"],
            "epoch": [0, 1, 2],
            "term": [1, 2],
            "history": [0, 1, 1000],
            "tenants": ["ada", "bob"],
        }
    )


def _summary(tally: Tally) -> str:
    codes: dict[str, int] = {}
    for (_, code), calls in tally.codes.items():
        codes[code] = codes.get(code, 0) + calls
    return ", ".join(f"{code} {calls}" for code, calls in sorted(codes.items(), key=lambda item: -item[1]))
