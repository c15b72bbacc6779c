"""`hekaton pool`: who runs what."""

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
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("worker", "runs", "resident", "weights", "KV", "of", "live", "waiting", "switches"):
        table.add_column(column, overflow="fold")
    for worker in state.workers:
        table.add_row(*_row(worker))
    leader = f"term {state.leader_term}" if state.leader_term else "none: requests wait"
    lines = [f"queued requests: {state.queued_requests}   scheduler: {leader}"]
    lines += [
        f"{turn.worker_id}  {turn.model}  {turn.duration_s:.2f} s  {turn.tokens} tokens  "
        f"switch {turn.exposed_switch_s * 1000:.0f} ms  left {len(turn.preempted_request_ids)} unfinished"
        for turn in turns
    ]
    return Group(table, *lines)


def _row(worker: Worker) -> tuple[str, ...]:
    loading = (f"{model} (loading)" for model in worker.loading_models)
    return (
        worker.worker_id + (" (draining)" if worker.draining else ""),
        worker.running_model or "–",
        ", ".join((*worker.resident_models, *loading)) or "–",
        readable(worker.weights_bytes),
        readable(worker.kv_bytes),
        f"{readable(worker.device_memory_bytes)} {worker.device}",
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
