"""`hekaton sim sustain` and `hekaton sim compare`: how many models a pool holds."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from hekaton.cli import sim_options as options
from hekaton.cli.common import console
from hekaton.sim import compare as comparison
from hekaton.sim.compare import Case, Row
from hekaton.sim.run import Settings
from hekaton.sim.sustain import HINT_MODELS, Sustained
from hekaton.sim.sustain import sustain as search
from hekaton.sim.trials import DURATION_S, SUSTAINED, Point, Traffic
from hekaton.sim.variants import Variant

RATES_PER_S = (0.1, 0.5)

Duration = Annotated[float, typer.Option(help="Seconds of arrivals; every run goes on to the end of its last answer.")]
Hint = Annotated[int, typer.Option(min=1, help="Models to begin the search with.")]


def sustain(
    policy: Annotated[str, typer.Option(help="The turn policy.")] = "slack",
    policy_option: options.PolicyOption = None,
    gpus: options.Gpus = 16,
    device: options.Device = "h800",
    device_memory: options.DeviceMemory = "",
    bandwidth_gbps: options.BandwidthGbps = 16.0,
    rate: options.Rate = 0.1,
    zipf: options.ZipfExponent = 0.0,
    lengths_file: options.LengthsFile = None,
    duration: Duration = DURATION_S,
    arrivals: options.ArrivalPattern = options.Pattern.POISSON,
    burstiness: options.Burstiness = 1.0,
    on_s: options.OnS = 30.0,
    off_s: options.OffS = 90.0,
    arrivals_file: options.ArrivalsFile = None,
    ttft: options.Ttft = 10.0,
    tbt: options.Tbt = 0.1,
    seeds: options.Seeds = 3,
    hint: Hint = HINT_MODELS,
    jobs: options.Jobs = 0,
    as_json: options.Json = False,
) -> None:
    """Find the largest number of models with 90 % of the tokens on time: of all, and of the last third of arrivals."""
    with options.refusals():
        pattern = options.arrivals_of(arrivals, burstiness, on_s, off_s, arrivals_file)
        traffic = Traffic(duration, pattern, options.lengths_of(lengths_file), tuple(range(seeds)))
        settings = Settings(
            gpus=gpus,
            device=device,
            device_memory_bytes=options.memory_bytes(device_memory),
            bandwidth_bytes_per_s=bandwidth_gbps * options.GB,
            ttft_s=ttft,
            tbt_s=tbt,
        )
        variant = Variant(policy, options.policy_options(policy_option))
        with options.processes(jobs) as executor, options.Watch() as watch:
            found = search(
                [variant],
                settings,
                rate,
                traffic,
                executor,
                zipf=zipf,
                hint=hint,
                seen=lambda variant, point: watch.show(variant.policy, _models(point)),
            )
    if as_json:
        typer.echo(json.dumps({"gpus": gpus, "device": device, "rate_per_s": rate, **_facts(found)}))
    else:
        console.print(_points(found))
        console.print(
            f"{policy} sustains {found.models} models on {gpus} x {device} at {rate:g} requests a second each"
        )


def compare(
    gpus: options.Gpus = 16,
    device: options.Device = "h800",
    device_memory: options.DeviceMemory = "",
    bandwidth_gbps: options.BandwidthGbps = 16.0,
    rate: Annotated[
        list[float] | None, typer.Option(help="Requests a second and model; may be repeated.  [default: 0.1, 0.5]")
    ] = None,
    slo: options.SloScale = None,
    lengths_file: options.LengthsFile = None,
    duration: Duration = DURATION_S,
    ttft: options.Ttft = 10.0,
    tbt: options.Tbt = 0.1,
    seeds: options.Seeds = 3,
    hint: Hint = HINT_MODELS,
    jobs: options.Jobs = 0,
    as_json: options.Json = False,
) -> None:
    """Find how many models every policy sustains, each at its best, and what share that is of the ceiling.

    The ceiling is the best of all policies, and of several minimum turns, when switching is free.
    """
    with options.refusals():
        traffic = Traffic(duration, lengths=options.lengths_of(lengths_file), seeds=tuple(range(seeds)))
        settings = Settings(
            gpus=gpus,
            device=device,
            device_memory_bytes=options.memory_bytes(device_memory),
            bandwidth_bytes_per_s=bandwidth_gbps * options.GB,
            ttft_s=ttft,
            tbt_s=tbt,
        )
        cases = [Case(one, scale) for one in rate or RATES_PER_S for scale in slo or [1.0]]
        with options.processes(jobs) as executor, options.Watch() as watch:
            rows = comparison.compare(
                cases,
                settings,
                traffic,
                executor,
                hint=hint,
                seen=lambda case, name, variant, point: watch.show(f"{_title(case)}, {name}", _models(point)),
            )
    if as_json:
        typer.echo(json.dumps({"gpus": gpus, "device": device, "rows": [_row_facts(row) for row in rows]}))
    else:
        console.print(_comparison(rows))


def _facts(found: Sustained) -> dict[str, object]:
    return {
        "policy": found.variant.policy,
        "policy_options": dict(found.variant.options),
        "sustained_models": found.models,
        "points": [{"models": point.size, **_measures(point)} for point in found.points],
    }


def _measures(point: Point) -> dict[str, object]:
    return {name: value for name, value in asdict(point).items() if name != "size"}


def _row_facts(row: Row) -> dict[str, object]:
    policies = {name: {**_facts(found), "share_of_ceiling": row.share(name)} for name, found in row.policies.items()}
    return {**asdict(row.case), "policies": policies, "ceiling": _facts(row.ceiling)}


def _models(point: Point) -> str:
    return f"{point.size} models, {point.token_attainment:.3f} on time, {point.last_third_attainment:.3f} at the end"


def _title(case: Case) -> str:
    return f"{case.rate_per_s:g}/s" + (f" {case.slo_scale:g} x SLO" if case.slo_scale != 1 else "")


def _points(found: Sustained) -> Table:
    table = Table("models", "token attainment", "of the last third", box=SIMPLE, pad_edge=False)
    for point in found.points:
        style = "" if point.is_sustained else "dim"
        values = (point.token_attainment, point.last_third_attainment)
        table.add_row(str(point.size), *(f"{value:.3f}" for value in values), style=style)
    return table


def _comparison(rows: list[Row]) -> Table:
    title = f"models sustained ({SUSTAINED:.0%} of the tokens on time), share of the ceiling, best options"
    table = Table("policy", *(_title(row.case) for row in rows), box=SIMPLE, pad_edge=False, title=title)
    for name in rows[0].policies:
        table.add_row(name, *(_cell(row.policies[name], f"{row.share(name):.0%}") for row in rows))
    table.add_row("ceiling", *(_cell(row.ceiling, row.ceiling.variant.policy) for row in rows))
    return table


def _cell(found: Sustained, note: str) -> str:
    chosen = " ".join(f"{name}={value:g}" for name, value in found.variant.options.items())
    return f"{found.models} ({note}) {chosen}".strip()
