"""`hekaton soak`: loads a pool of its own for long, and says whether it holds more at the end than at the beginning."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hekaton.chaos.soak import SoakOptions, SoakReport
from hekaton.chaos.soak import soak as run_soak
from hekaton.cli.common import check_device, console, run, stderr

FAILED = 1


def soak(
    duration: Annotated[float, typer.Option(min=1.0, help="Seconds.")] = 1800.0,
    round_s: Annotated[float, typer.Option("--round", min=0.5, help="Seconds of load between two rests.")] = 20.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds that do not count.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the requests.")] = 1,
    device: Annotated[str, typer.Option(help="cpu (tiny real models in float32) or emulated:NAME.")] = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="Clients at the same time.")] = 24,
    bound: Annotated[float, typer.Option(min=0.0, help="The most that anything may grow, 0.02 is 2 %.")] = 0.02,
    log_dir: Annotated[Path | None, typer.Option(help="Keep the services' logs there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Load a local pool for long, with cancels and a worker that is killed in every round; exit status 0 if it held.

    Between rounds it rests, and must hold no more memory, file descriptors, tasks, segments and keys than before.
    """
    check_device(device)
    options = SoakOptions(duration, round_s, warm_up, seed, device, concurrency, bound, log_dir)
    found = run(run_soak(options, lambda text: stderr.print(text, style="dim", markup=False, soft_wrap=True)))
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)
    if not found.held:
        raise typer.Exit(FAILED)


def _show(found: SoakReport) -> None:
    table = Table("what", "first", "last", "growth", title=f"soak: {found.duration_s:.0f} s, {found.rounds} rounds")
    for name, growth in found.growth.items():
        style = "red" if name in found.grown else None
        table.add_row(name, f"{growth.first:,.0f}", f"{growth.last:,.0f}", f"{growth.ratio:+.1%}", style=style)
    console.print(table)
    console.print(f"{found.restarts} workers killed; requests: {found.ends}", markup=False)
    console.print("[green]nothing has grown[/green]" if found.held else "[red]it did not hold[/red]")
