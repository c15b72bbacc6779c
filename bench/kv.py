"""What KV swaps cost: `python -m bench.kv [--json] [--rounds N]`.

`decode_slowdown_under_swap`: a random-weight Llama of the 135M class decodes. In every other turn of some steps the KV
of another model's requests leaves for the host and comes back meanwhile: what that adds to the turn, as a share;
medians. `decode_slowdown_under_ceaseless_swap` is the same where the next swap begins as soon as one has ended.

`host_fragmentation`: 1 - used / assigned bytes of the host's slabs, of 64 blocks each, under a trace of the paper's
artifact with six block shapes; averaged over the time in which more than half of the memory is in use.

`handover_over_recompute`: handing the KV of a prompt to another worker of the host ÷ prefilling it again;
`handover_between_hosts_over_recompute` with a fetch from another memory service over gRPC on loopback.
"""

import argparse
import asyncio
import csv
import heapq
import json
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from statistics import median

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench.kv_handover import TOKENS, Handover, handover
from bench.machine import cpu_name
from bench.weights import SHARED_MEMORY, images_of, write_checkpoint
from hekaton.engine.device import Extents
from hekaton.engine.interface import StepItem
from hekaton.engine.kv import MAX_SLAB_BLOCKS, UNIT_BYTES, BlockShape, KvCache
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Sampling

DTYPE = "bfloat16"
BATCH = 8
CONTEXT_TOKENS = 256
STEPS_A_TURN = 10
SWAPPED = tuple(f"swapped-{index}" for index in range(BATCH))
SWAPPED_TOKENS = 512
KV_ROOM_BYTES = 256 << 20
GREEDY = Sampling(max_tokens=1, seed=1)

WORKLOAD = Path(__file__).parent / "data" / "workloads" / "sharegpt-48models-0.1rps.csv"
SHAPES = tuple(
    BlockShape(layers, heads, 128, DTYPE, 2)
    for layers, heads in ((28, 4), (32, 4), (48, 4), (32, 8), (32, 32), (40, 40))
)
"""Qwen2.5-7B, Yi-1.5-6B, Yi-1.5-9B, InternLM2.5-7B, Llama-2-7B and Llama-2-13B."""
AWAY_S, HERE_S, TOKENS_A_TURN = 3.0, 1.0, 40
"""A request's KV is on the host for so long, then on the device, where it gains so many tokens."""


class Swap(Enum):
    NONE = "none"
    ONCE = "once"
    CEASELESS = "ceaseless"


@dataclass(frozen=True, slots=True)
class Result:
    turn_ms: float
    """Without swaps; medians."""
    turn_under_swap_ms: float
    turn_under_ceaseless_swap_ms: float
    swapped_bytes: int
    """Of one swap, in each direction."""
    ceaseless_swaps_a_turn: float
    decode_slowdown_under_swap: float
    decode_slowdown_under_ceaseless_swap: float
    host_fragmentation: float
    host_memory_bytes: int
    """As much as the trace needs at its peak."""
    handover_over_recompute: float
    handover_between_hosts_over_recompute: float
    handover: Handover


class Decode:
    """A model that decodes a batch, and the KV of another model beside it."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._computed = 0
        self._coming: set[str] = set()
        self.swaps = 0

    def start(self) -> None:
        """Loads the model, computes the prompts and makes the other's KV."""
        self._engine.begin_load("a")
        while "a" in self._engine.loading():
            select.select([self._engine.fileno()], [], [])
            self._engine.finished_loads()
        for request_id in SWAPPED:
            self._must(self._engine.grow_kv(request_id, "b", SWAPPED_TOKENS))
        self._feed(CONTEXT_TOKENS)

    def turn(self, swap: Swap) -> float:
        """Makes the steps of a turn; how long they took, in ms. No copy is under way before and after."""
        started_s = time.perf_counter()
        for index in range(STEPS_A_TURN):
            if not self._coming and (swap is Swap.CEASELESS or (swap is Swap.ONCE and index == 0)):
                self._swap()
            self._feed(1)
            self._collect()
        took_ms = (time.perf_counter() - started_s) * 1e3
        while self._coming:
            select.select([self._engine.fileno()], [], [])
            self._collect()
        return took_ms

    def _swap(self) -> None:
        self.swaps += 1
        for request_id in SWAPPED:
            self._must(self._engine.swap_out(request_id, SWAPPED_TOKENS))
        for request_id in SWAPPED:
            self._must(self._engine.swap_in(request_id))
        self._coming = set(SWAPPED)

    def _collect(self) -> None:
        for swap in self._engine.finished_swaps():
            if swap.error:
                raise RuntimeError(swap.error)
            self._coming.remove(swap.request_id)

    def _feed(self, tokens: int) -> None:
        items = []
        for index in range(BATCH):
            self._must(self._engine.grow_kv(f"r{index}", "a", self._computed + tokens))
            ids = tuple((index + place) % 1000 for place in range(tokens))
            items.append(StepItem(f"r{index}", ids, self._computed, GREEDY, 0))
        self._engine.step("a", items)
        self._computed += tokens

    def _must(self, done: bool) -> None:
        if not done:
            raise RuntimeError("there is no room for the KV of this bench")


def measure(rounds: int, directory: Path) -> tuple[dict[Swap, list[float]], float, int]:
    """Turns in ms, ceaseless swaps a turn, and bytes of a swap."""
    spec, images = images_of(write_checkpoint(directory / "checkpoint"), DTYPE, directory)
    memory_bytes, swapped_bytes = spec.weight_bytes + KV_ROOM_BYTES, BATCH * SWAPPED_TOKENS * spec.kv_bytes_per_token
    engine = TransformersEngine("cpu", memory_bytes, 1, 2 * swapped_bytes, directory)
    times: dict[Swap, list[float]] = {kind: [] for kind in Swap}
    with closing(engine):
        for name, image in images.items():
            engine.add_model(name, spec, "")
            engine.provide_image(name, image)
        decode = Decode(engine)
        decode.start()
        for kind in Swap:
            decode.turn(kind)
        for round_ in range(rounds):
            before = decode.swaps
            kinds = list(Swap)
            for kind in kinds if round_ % 2 else reversed(kinds):
                times[kind].append(decode.turn(kind))
        swaps = decode.swaps - before - 1
    return times, swaps, swapped_bytes


def fragmentation(limit_bytes: int) -> tuple[float, int]:
    """Time-averaged fragmentation of so much host memory above half its use, and the most that was in use, in bytes."""
    kv = KvCache(Extents(limit_bytes), 0, least_blocks=MAX_SLAB_BLOCKS)
    weighted_s = total_s = last_s = 0.0
    peak_bytes = 0
    for time_s, request_id, shape, tokens in _moves():
        if 2 * kv.used_bytes > limit_bytes:
            weighted_s += (time_s - last_s) * kv.unused_bytes / kv.slab_bytes
            total_s += time_s - last_s
        last_s = time_s
        if tokens:
            kv.grow(request_id, shape, tokens)
        elif kv.holds(request_id):
            kv.drop(request_id)
            kv.squeeze(shape)
        peak_bytes = max(peak_bytes, kv.used_bytes)
    kv.check_integrity()
    return weighted_s / total_s if total_s else 0.0, peak_bytes


def _moves() -> Iterator[tuple[float, str, BlockShape, int]]:
    """When whose KV goes to the host, of so many tokens, or, with 0 tokens, leaves it."""
    with WORKLOAD.open(newline="", encoding="utf-8") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    agenda = [(float(row[0]) + HERE_S, index, int(row[2]) + 1, int(row[3]) - 1, True) for index, row in enumerate(rows)]
    heapq.heapify(agenda)
    while agenda:
        time_s, index, tokens, left, leaves = heapq.heappop(agenda)
        shape = SHAPES[int(rows[index][1][1:]) % len(SHAPES)]
        yield time_s, str(index), shape, tokens if leaves else 0
        gained = min(left, TOKENS_A_TURN)
        if leaves:
            heapq.heappush(agenda, (time_s + AWAY_S, index, tokens, left, False))
        elif left:
            heapq.heappush(agenda, (time_s + HERE_S, index, tokens + gained, left - gained, True))


def result(rounds: int, directory: Path) -> Result:
    times, swaps, swapped_bytes = measure(rounds, directory)
    plain_ms, once_ms, ceaseless_ms = (median(times[kind]) for kind in Swap)
    _, peak_bytes = fragmentation(1 << 50)
    limit_bytes = peak_bytes // UNIT_BYTES * UNIT_BYTES
    with tempfile.TemporaryDirectory(dir=directory) as name:
        handed = asyncio.run(handover(rounds, Path(name)))
    return Result(
        turn_ms=plain_ms,
        turn_under_swap_ms=once_ms,
        turn_under_ceaseless_swap_ms=ceaseless_ms,
        swapped_bytes=swapped_bytes,
        ceaseless_swaps_a_turn=swaps,
        decode_slowdown_under_swap=once_ms / plain_ms - 1,
        decode_slowdown_under_ceaseless_swap=ceaseless_ms / plain_ms - 1,
        host_fragmentation=fragmentation(limit_bytes)[0],
        host_memory_bytes=limit_bytes,
        handover_over_recompute=handed.host_ms / handed.recompute_ms,
        handover_between_hosts_over_recompute=handed.network_ms / handed.recompute_ms,
        handover=handed,
    )


def _table(one: Result) -> Table:
    mib = one.swapped_bytes / 2**20
    table = Table(title=f"KV swaps on cpu ({cpu_name()}, one thread for steps, one for copies)", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row(f"{STEPS_A_TURN} decode steps, {BATCH} requests", f"{one.turn_ms:.0f} ms")
    table.add_row(f"with {mib:.0f} MiB of KV out and in meanwhile", f"{one.turn_under_swap_ms:.0f} ms")
    table.add_row("slowdown", f"{one.decode_slowdown_under_swap:.1%}")
    table.add_row(
        f"with {one.ceaseless_swaps_a_turn:.0f} such swaps, without a pause",
        f"{one.turn_under_ceaseless_swap_ms:.0f} ms",
    )
    table.add_row("slowdown", f"{one.decode_slowdown_under_ceaseless_swap:.1%}")
    gib = one.host_memory_bytes / 2**30
    table.add_row(f"fragmentation of {gib:.0f} GiB of host memory, six block shapes", f"{one.host_fragmentation:.1%}")
    handed = one.handover
    table.add_row(f"prefill of {TOKENS} tokens", f"{handed.recompute_ms:.0f} ms")
    table.add_row(f"hand-over of their KV, {handed.kv_bytes / 2**20:.0f} MiB, on one host", f"{handed.host_ms:.0f} ms")
    table.add_row("÷ prefill", f"{one.handover_over_recompute:.3f}")
    table.add_row("the same between hosts, over gRPC on loopback", f"{handed.network_ms:.0f} ms")
    table.add_row("÷ prefill", f"{one.handover_between_hosts_over_recompute:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kv", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        found = result(args.rounds, Path(name))
    if args.json:
        print(json.dumps({"device": "cpu", "cpu": cpu_name(), **asdict(found)}))
    else:
        Console().print(_table(found))


if __name__ == "__main__":
    main()
