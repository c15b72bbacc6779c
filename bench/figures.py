"""Draws the pictures of the documentation: `python -m bench.figures`, or `make figures`.

attainment-0.1.svg and attainment-0.5.svg: share of tokens on time against the number of models, on 16 h800 under every
policy, a panel for each scale of the objectives. The numbers are beside them as CSV.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hekaton.cli.sim_options import processes
from hekaton.sim.abreast import abreast
from hekaton.sim.catalog import names
from hekaton.sim.compare import Case
from hekaton.sim.figures import Curve, panels
from hekaton.sim.lengths import read
from hekaton.sim.popularity import Zipf
from hekaton.sim.run import Settings
from hekaton.sim.trials import SUSTAINED, Point, Traffic, measure
from hekaton.sim.variants import Variant, contenders

ROOT = Path(__file__).parents[1]
LENGTHS = ROOT / "bench" / "data" / "sharegpt_lengths_sample.csv"
MODELS = {0.1: range(16, 193, 16), 0.5: range(8, 137, 8)}
SLO_SCALES = (1.0, 0.5, 0.3)
HOPELESS = 0.4
"""A curve ends where attainment falls below."""
Found = dict[tuple[str, Case], list[Point]]


def curve(variant: Variant, case: Case, models: Sequence[int], traffic: Traffic, executor: Executor) -> list[Point]:
    """A point for each number of models, as far as there is hope."""
    settings = variant.apply(case.apply(Settings()))
    points: list[Point] = []
    for count in models:
        rates = Zipf(case.rate_per_s).rates_per_s(names(count))
        points.append(measure(count, rates, settings, traffic, executor))
        if points[-1].token_attainment < HOPELESS:
            break
    return points


def measure_all(cases: Sequence[Case], every: int, traffic: Traffic, executor: Executor) -> Found:
    """Every policy, with the first of its settings, in every case."""
    variants = {name: own[0] for name, own in contenders().items()}
    return abreast(
        {
            (name, case): partial(curve, variant, case, MODELS[case.rate_per_s][::every], traffic, executor)
            for case in cases
            for name, variant in variants.items()
        }
    )


def draw(found: Found, rate: float, out: Path) -> None:
    """The picture of one rate, and its numbers."""
    titles = {case: f"{rate:g} requests/s a model, {case.slo_scale:g} x SLO" for _, case in found}
    curves: dict[str, dict[str, Curve]] = {}
    rows: list[tuple[str, float, int, str]] = []
    for (name, case), points in found.items():
        if case.rate_per_s == rate:
            curves.setdefault(titles[case], {})[name] = [(point.size, point.token_attainment) for point in points]
            rows += [(name, case.slo_scale, point.size, f"{point.token_attainment:.4f}") for point in points]
    panels(curves, "models", "share of tokens on time", SUSTAINED, out / f"attainment-{rate:g}.svg")
    with (out / f"attainment-{rate:g}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("policy", "slo_scale", "models", "token_attainment"), *rows])


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = ROOT / "docs" / "figures",
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 300.0,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    every: Annotated[int, typer.Option(min=1, help="Only every n-th number of models, for a quick look.")] = 1,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 is one for each CPU.")] = 0,
) -> None:
    """Simulate, and draw."""
    out.mkdir(parents=True, exist_ok=True)
    traffic = Traffic(duration, lengths=read(LENGTHS), seeds=tuple(range(seeds)))
    cases = [Case(rate, scale) for rate in MODELS for scale in SLO_SCALES]
    with processes(jobs) as executor:
        found = measure_all(cases, every, traffic, executor)
    for rate in MODELS:
        draw(found, rate, out)


if __name__ == "__main__":
    typer.run(main)
