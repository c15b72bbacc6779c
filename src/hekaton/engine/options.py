"""How an engine process is started: the worker writes the options, the engine process reads them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class EngineOptions:
    engine: str
    """`transformers` or `emulated`."""
    device: str
    """cpu, cuda or cuda:N; for the emulated engine a profiled device, e.g. h800."""
    device_memory_bytes: int
    worker_id: str
    threads: int = 1
    min_turn_s: float = 0.4
    time_scale: float = 1.0
    max_batch: int = 64
    prefill_chunk_tokens: int = 512

    def to_argv(self) -> list[str]:
        return [f"--{field.name.replace('_', '-')}={getattr(self, field.name)}" for field in fields(self)]

    @classmethod
    def from_namespace(cls, parsed: argparse.Namespace) -> Self:
        return cls(**{field.name: getattr(parsed, field.name) for field in fields(cls)})


def parse(argv: Sequence[str] | None) -> tuple[int, EngineOptions]:
    """The socket's file descriptor and the options. Exits with status 2 and a message if they are not sound."""
    parser = argparse.ArgumentParser(prog="python -m hekaton.engine.host", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited stream socket to the worker")
    parser.add_argument("--engine", choices=("transformers", "emulated"), required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--device-memory-bytes", "--device-memory", type=int, required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-turn-s", "--min-turn", type=float, default=0.4)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--prefill-chunk-tokens", type=int, default=512)
    parsed = parser.parse_args(argv)
    return parsed.fd, EngineOptions.from_namespace(parsed)
