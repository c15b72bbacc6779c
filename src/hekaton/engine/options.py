"""How an engine process is started: the worker writes the options, the engine process reads them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from hekaton.policy.types import Role


@dataclass(frozen=True, slots=True)
class EngineOptions:
    engine: str
    """`transformers` or `emulated`."""
    device: str
    """cpu, cuda or cuda:N; for the emulated engine a profiled device, e.g. h800."""
    device_memory_bytes: int
    """For weights and KV."""
    worker_id: str
    threads: int = 1
    policy: str = "slack"
    policy_options: Mapping[str, float] = field(default_factory=dict)
    role: Role = Role.ANY
    time_scale: float = 1.0
    max_batch: int = 64
    prefill_chunk_tokens: int = 512
    host_kv_memory_bytes: int = 0
    """Host memory for KV that leaves the device; 0: it is computed again."""
    host_kv_dir: str = ""
    """Where its file is made; the directory for temporary files if empty."""
    copy_bytes_per_s: int = 0
    """Limit of copies to and from the device; 0: none."""

    def to_argv(self) -> list[str]:
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        given |= {"policy_options": json.dumps(dict(self.policy_options)), "role": self.role.value}
        return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]

    @classmethod
    def from_namespace(cls, parsed: argparse.Namespace) -> Self:
        return cls(**{one.name: getattr(parsed, one.name) for one in fields(cls)})


def parse(argv: Sequence[str] | None) -> tuple[int, int | None, EngineOptions]:
    """The file descriptors of the socket and of the step mark, and the options.

    Exits with status 2 and a message if they are not sound.
    """
    parser = argparse.ArgumentParser(prog="python -m hekaton.engine.host", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited stream socket to the worker")
    parser.add_argument("--mark-fd", type=int, help="inherited file that says which step is under way")
    parser.add_argument("--engine", choices=("transformers", "emulated"), required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--device-memory-bytes", "--device-memory", type=int, required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--policy", default="slack")
    parser.add_argument("--policy-options", type=json.loads, default={}, help="a JSON object of numbers")
    parser.add_argument("--role", type=Role, default=Role.ANY)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--prefill-chunk-tokens", type=int, default=512)
    parser.add_argument("--host-kv-memory-bytes", type=int, default=0)
    parser.add_argument("--host-kv-dir", default="")
    parser.add_argument("--copy-bytes-per-s", type=int, default=0)
    parsed = parser.parse_args(argv)
    return parsed.fd, parsed.mark_fd, EngineOptions.from_namespace(parsed)
