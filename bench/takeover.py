"""What faults cost those who read: `python -m bench.takeover [--json] [--workers N] [--seconds S]`.

A pool of emulated devices with real services. The same load runs twice, and in the second run the leading scheduler is
killed under it, with a standby beside it: attainment of the tokens due in the 10 s after, and the longest pause between
two tokens of one request then, against the first run. Then a worker is killed, and one is frozen, while it generates,
with a spare that holds the model: how long the reader waits for the next token.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import cpu_name
from hekaton.cli.child import Child
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client, Finished, SamplingOptions, Tokens
from hekaton.load.sample import Sample
from hekaton.load.session import Doors, LoadPlan, load
from hekaton.sim import workload
from hekaton.sim.arrivals import Poisson
from hekaton.sim.lengths import read
from hekaton.sim.workload import Arrival
from hekaton.store.connect import connect
from hekaton.store.leadership import Leadership

LENGTHS = Path(__file__).parent / "data" / "sharegpt_lengths_sample.csv"
SOURCE = "emulated:qwen2.5-7b"
MODELS = 6
RATE = 0.4
"""Requests a second and model."""
OUTPUT_TOKENS = 400
"""Of a request, at most."""
TTFT_S, TBT_S = 10.0, 0.1
AFTER_S = 10.0
GENERATED_TOKENS = 1000
BEFORE_TOKENS = 100
"""So many tokens come before the worker is hit."""
IDLE_S = 3.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Window:
    """Of the tokens due, or delivered, in the AFTER_S after the fault; in seconds on the clock."""

    attainment: float
    longest_pause_s: float


@dataclass(frozen=True, slots=True)
class Result:
    workers: int
    new_leader_s: float
    undisturbed: Window
    leader_killed: Window
    pause_ratio: float
    attainment_difference: float
    worker_killed_s: float
    worker_frozen_s: float
    usual_pause_s: float
    """The longest of a stream before its worker was hit."""


def window(samples: Sequence[Sample], from_s: float) -> Window:
    until_s = from_s + AFTER_S
    owed = on_time = 0
    pauses = [0.0]
    for sample in samples:
        for index in range(sample.owed):
            due_s = sample.slo.ttft_s + index * sample.slo.tbt_s
            if from_s <= sample.arrival_s + due_s < until_s:
                owed += 1
                on_time += index < len(sample.token_times_s) and sample.token_times_s[index] <= due_s
        times_s = sample.token_times_s[1:]
        pauses += [
            gap for gap, at_s in zip(sample.gaps_s, times_s, strict=True) if from_s <= sample.arrival_s + at_s < until_s
        ]
    return Window(on_time / owed if owed else 1.0, max(pauses))


async def loaded(stack: Stack, asked: Sequence[Arrival]) -> list[Sample]:
    return await load(Doors([stack.address]), LoadPlan(lambda names: asked, (), TTFT_S, TBT_S))


async def leader_killed(stack: Stack, after_s: float) -> float:
    """When the next one leads, in seconds after the kill."""
    await asyncio.sleep(after_s)
    async with connect(stack.redis_url) as redis:
        leadership = Leadership(redis)
        leads = await leadership.current()
        if leads is None:
            raise RuntimeError("nobody leads")
        child(stack, leads[0]).kill()
        killed_s = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            if (now := await leadership.current()) and now[1] != leads[1]:
                return time.monotonic() - killed_s


async def interrupted(stack: Stack, model: str, hit: Callable[[int], None]) -> tuple[float, float]:
    """The longest pause of a stream before its worker is hit, and from then on."""
    options = SamplingOptions(max_tokens=GENERATED_TOKENS, temperature=0.0, ignore_eos=True)
    before_s = after_s = 0.0
    came = 0
    # Until every worker has said that it is idle.
    await asyncio.sleep(IDLE_S)
    async with Client(stack.address) as client, aclosing(client.generate(model, [1, 2, 3], options)) as events:
        last_s = time.monotonic()
        async for event in events:
            if isinstance(event, Finished) and not event.stats.failures:
                raise RuntimeError("the worker that was hit was another one")
            if not isinstance(event, Tokens):
                continue
            now_s = time.monotonic()
            pause_s, last_s = now_s - last_s, now_s
            if came >= BEFORE_TOKENS:
                after_s = max(after_s, pause_s)
            elif came:
                before_s = max(before_s, pause_s)
            if came < BEFORE_TOKENS <= came + len(event.token_ids):
                hit(child(stack, await busy(client)).pid or 0)
                last_s = time.monotonic()
            came += len(event.token_ids)
    if came != GENERATED_TOKENS:
        raise RuntimeError(f"{came} of {GENERATED_TOKENS} tokens came")
    return before_s, after_s


async def busy(client: Client) -> str:
    """The worker that runs something, as soon as it has said so."""
    while True:
        for worker in (await client.pool()).workers:
            if worker.requests_running:
                return worker.worker_id
        await asyncio.sleep(POLL_S)


def child(stack: Stack, name: str) -> Child:
    return next(one for one in stack.children if one.name == name)


async def measure(workers: int, seconds: float, folder: Path) -> Result:
    rates = {f"m{index}": RATE for index in range(MODELS)}
    drawn = workload.generate(rates, seconds, Poisson(), read(LENGTHS), 1)
    asked = [replace(one, output_tokens=min(one.output_tokens, OUTPUT_TOKENS)) for one in drawn]
    options = StackOptions(device="emulated:h800", device_memory="80GiB", workers=workers, schedulers=2, log_dir=folder)
    kill_s = seconds / 2
    async with Stack(options, lambda text: None) as stack:
        async with Client(stack.address) as client:
            for model in rates:
                await client.register_model(model, SOURCE)
        undisturbed = window(await loaded(stack, asked), kill_s)
        samples, new_leader_s = await asyncio.gather(loaded(stack, asked), leader_killed(stack, kill_s))
        hit = window(samples, kill_s)
        usual_s, killed_s = await interrupted(stack, "m0", lambda pid: os.kill(pid, signal.SIGKILL))
        frozen: list[int] = []

        def freeze(pid: int) -> None:
            frozen.append(pid)
            os.kill(pid, signal.SIGSTOP)

        _, frozen_s = await interrupted(stack, "m1", freeze)
        os.kill(frozen[0], signal.SIGCONT)
    return Result(
        workers=workers,
        new_leader_s=new_leader_s,
        undisturbed=undisturbed,
        leader_killed=hit,
        pause_ratio=hit.longest_pause_s / undisturbed.longest_pause_s,
        attainment_difference=hit.attainment - undisturbed.attainment,
        worker_killed_s=killed_s,
        worker_frozen_s=frozen_s,
        usual_pause_s=usual_s,
    )


def _table(result: Result) -> Table:
    machine = f"{os.cpu_count()} cores of {cpu_name()}"
    table = Table(title=f"{result.workers} emulated h800 ({machine})")
    table.add_column("")
    for name in ("without", "with", "difference"):
        table.add_column(name, justify="right")
    before, after = result.undisturbed, result.leader_killed
    rows = (
        ("leader killed: attainment of the next 10 s", f"{before.attainment:.3f}", f"{after.attainment:.3f}"),
        ("leader killed: longest pause", f"{before.longest_pause_s:.2f} s", f"{after.longest_pause_s:.2f} s"),
    )
    for row, difference in zip(
        rows, (f"{result.attainment_difference:+.3f}", f"{result.pause_ratio:.2f} ×"), strict=True
    ):
        table.add_row(*row, difference)
    table.add_row("leader killed: the next one leads after", "", f"{result.new_leader_s:.2f} s", "")
    for name, pause_s in (("killed", result.worker_killed_s), ("frozen", result.worker_frozen_s)):
        table.add_row(f"worker {name}: longest pause", f"{result.usual_pause_s:.2f} s", f"{pause_s:.2f} s", "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=24.0, help="of arrivals, in each of the two runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(args.workers, args.seconds, Path(folder)))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), **asdict(result)}))
    else:
        Console().print(_table(result))


if __name__ == "__main__":
    main()
