"""`hekaton pool`: who runs what."""

from collections import Counter
from contextlib import aclosing
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from hekaton.cli.common import DEFAULT_ADDRESS, Address, console, readable, run
from hekaton.client import Client, Pool, Worker
from hekaton.facts import TurnRecord

TURNS_SHOWN = 10


def pool(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, with the turns as they end.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Show the workers, what each runs and holds, and what waits."""
    if watch:
        run(_watch(address))
    else:
        console.print(render(run(_once(address)), []))


def render(state: Pool, turns: list[TurnRecord]) -> RenderableType:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("worker", no_wrap=True)
    table.add_column("models", overflow="fold")
    for column in ("weights", "KV", "of", "host KV", "live", "waiting", "switches"):
        table.add_column(column, justify="right", no_wrap=True)
    for worker in state.workers:
        table.add_row(*_row(worker))
    leader = f"term {state.leader_term}" if state.leader_term else "none: requests wait"
    devices = Counter(worker.device for worker in state.workers)
    held = ", ".join(f"{count} × {device}" for device, count in devices.items()) or "none"
    lines = [f"devices: {held}   queued requests: {state.queued_requests}   scheduler: {leader}"]
    lines += [
        f"{turn.worker_id}  {turn.model}  {turn.duration_s:.2f} s  {turn.tokens} tokens  "
        f"switch {turn.exposed_switch_s * 1000:.0f} ms  left {len(turn.preempted_request_ids)} unfinished"
        for turn in turns
    ]
    return Group(table, *lines)


def _row(worker: Worker) -> tuple[str, ...]:
    others = [model for model in worker.resident_models if model != worker.running_model]
    running = [f"{worker.running_model} (runs)"] if worker.running_model else []
    loading = [f"{model} (loading)" for model in worker.loading_models if model != worker.running_model]
    return (
        worker.worker_id + (" (draining)" if worker.draining else ""),
        "\n".join([*running, *others, *loading]) or "–",
        readable(worker.weights_bytes),
        readable(worker.kv_bytes),
        readable(worker.device_memory_bytes),
        readable(worker.host_kv_bytes),
        str(worker.requests_running),
        str(worker.requests_waiting),
        str(worker.switches),
    )


async def _once(address: str) -> Pool:
    async with Client(address) as client:
        return await client.pool()


async def _watch(address: str) -> None:
    turns: list[TurnRecord] = []
    state = Pool((), 0, 0)
    with Live(console=console, auto_refresh=False) as live:
        async with Client(address) as client, aclosing(client.watch_pool()) as events:
            async for event in events:
                if isinstance(event, TurnRecord):
                    turns = [*turns, event][-TURNS_SHOWN:]
                else:
                    state = event
                live.update(render(state, turns), refresh=True)
