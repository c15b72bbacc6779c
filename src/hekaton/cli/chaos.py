"""`hekaton chaos`: breaks a pool of its own, and says whether the delivery contract held."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hekaton.chaos.faults import MIXED, SCENARIOS
from hekaton.chaos.report import Report
from hekaton.chaos.run import ChaosOptions
from hekaton.chaos.run import run as run_chaos
from hekaton.cli.common import check_device, console, run, stderr

FAILED = 1


def chaos(
    scenario: Annotated[str, typer.Option(help=f"What breaks: {MIXED}, {', '.join(SCENARIOS)}.")] = MIXED,
    requests: Annotated[int, typer.Option(min=1, help="How many requests are sent.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of requests and faults.")] = 1,
    device: Annotated[str, typer.Option(help="cpu (tiny real models in float32) or emulated:NAME.")] = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="Clients at the same time.")] = 24,
    interval: Annotated[tuple[float, float], typer.Option(help="Seconds between two faults, least and most.")] = (
        2.0,
        5.0,
    ),
    longest: Annotated[float, typer.Option(min=0.0, help="Most seconds that a fault lasts.")] = 20.0,
    log_dir: Annotated[Path | None, typer.Option(help="Keep the services' logs there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Break a local pool again and again under a checked load; exit status 0 only if the delivery contract held.

    It starts its own pool, two of each service and a Redis that persists, and touches no other process.
    """
    if scenario != MIXED and scenario not in SCENARIOS:
        raise typer.BadParameter(f"{scenario!r} is no scenario: say {MIXED}, {', '.join(SCENARIOS)}")
    check_device(device)
    options = ChaosOptions(scenario, requests, seed, device, concurrency, interval, longest, log_dir)
    found = run(run_chaos(options, lambda text: stderr.print(text, style="dim", markup=False, soft_wrap=True)))
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)
    if not found.held:
        raise typer.Exit(FAILED)


def _show(found: Report) -> None:
    table = Table(title=f"chaos: {found.scenario}, seed {found.seed} ({found.device})", show_header=False)
    for name, value in found.as_json().items():
        text = ", ".join(f"{key} {count}" for key, count in sorted(value.items())) if isinstance(value, dict) else value
        table.add_row(name, "-" if text is None or text == "" else str(text))
    console.print(table)
    verdict = "[green]the contract held[/green]" if found.held else "[red]the contract was broken[/red]"
    console.print(verdict)
