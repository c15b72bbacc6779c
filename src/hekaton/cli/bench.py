"""`hekaton bench`: load on a running pool."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hekaton.cli import sim_options as options
from hekaton.cli.common import DEFAULT_ADDRESS, console, fail, run, stderr
from hekaton.config import ADDRESS_VARIABLE
from hekaton.errors import InvalidArgument
from hekaton.load.api import ApiName
from hekaton.load.fit import parse_slos
from hekaton.load.report import LoadReport, Percentiles, report
from hekaton.load.sample import Sample
from hekaton.load.session import Asked, Doors, LoadPlan, Watcher, load
from hekaton.sim import workload
from hekaton.sim.arrivals import Arrivals
from hekaton.sim.lengths import Lengths
from hekaton.sim.popularity import Zipf
from hekaton.sim.trials import SUSTAINED

MODELS_SHOWN = 12
app = typer.Typer(no_args_is_help=True, help="Measure a running pool.")


@app.command("serve")
def serve(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Ask this model; repeatable. All if left out.")
    ] = None,
    workload_file: Annotated[
        Path | None, typer.Option("--workload", help=f"CSV of {','.join(workload.HEADER)}; else one is generated.")
    ] = None,
    rate: options.Rate = 0.1,
    zipf: options.ZipfExponent = 0.0,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 60.0,
    lengths_file: options.LengthsFile = None,
    arrivals: options.ArrivalPattern = options.Pattern.POISSON,
    burstiness: options.Burstiness = 1.0,
    on_s: options.OnS = 30.0,
    off_s: options.OffS = 90.0,
    arrivals_file: options.ArrivalsFile = None,
    seed: Annotated[int, typer.Option(min=0, help="Of workload and prompts.")] = 0,
    ttft: Annotated[float | None, typer.Option(help="Seconds to the first token; else each model's own.")] = None,
    tbt: Annotated[float | None, typer.Option(help="Seconds between tokens; else each model's own.")] = None,
    slo: Annotated[list[str] | None, typer.Option("--slo", help="Of one model, NAME=TTFT:TBT; repeatable.")] = None,
    time_scale: Annotated[float, typer.Option(min=0.001, help="Stretch arrivals and objectives: the pool's own.")] = 1,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Most seconds of one request.")] = 600.0,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", envvar=ADDRESS_VARIABLE, help=f"A router; repeatable.  [default: {DEFAULT_ADDRESS}]"),
    ] = None,
    api: Annotated[ApiName, typer.Option(help="How requests are sent; models are always asked for over gRPC.")] = (
        ApiName.GRPC
    ),
    http_url: Annotated[
        list[str] | None, typer.Option("--http-url", help="A router's HTTP address, for --api openai; repeatable.")
    ] = None,
    as_json: options.Json = False,
    svg: Annotated[Path | None, typer.Option(help="Draw how the times are spread, into this file.")] = None,
) -> None:
    """Send a workload to a pool, each request at its time whatever became of those before it, and report lateness.

    Prompts are random tokens; answers are as long as the workload says.
    """
    with options.refusals():
        own = parse_slos(slo or [])
        asked, wanted = _workload(
            model or [],
            workload_file,
            Zipf(rate, zipf),
            duration,
            options.arrivals_of(arrivals, burstiness, on_s, off_s, arrivals_file),
            options.lengths_of(lengths_file),
            seed,
        )
        doors = Doors(address or [DEFAULT_ADDRESS], api, http_url or ())
        plan = LoadPlan(asked, wanted, ttft, tbt, own, timeout_s, seed, time_scale)
    with _Bar() as bar:
        samples = run(load(doors, plan, Watcher(bar.begins, bar.ended)))
    result = report(samples)
    if svg:
        _draw(samples, svg)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        console.print(_table(result), _models(result))
    if not result.finished:
        fail(f"no request finished: {', '.join(sorted(result.failed))}")


def _workload(
    models: Sequence[str],
    file: Path | None,
    popularity: Zipf,
    duration_s: float,
    arrivals: Arrivals,
    lengths: Lengths,
    seed: int,
) -> tuple[Asked, Sequence[str]]:
    """The requests, and the models that they must find; none named is all."""
    if file is None:
        return lambda names: workload.generate(
            popularity.rates_per_s(names), duration_s, arrivals, lengths, seed
        ), models
    recorded = [one for one in workload.read(file) if not models or one.model in models]
    if not recorded:
        raise InvalidArgument(f"{file} asks nothing of {', '.join(models)}")
    return lambda names: recorded, sorted({one.model for one in recorded})


class _Bar:
    """Progress on a terminal's stderr."""

    def __init__(self) -> None:
        columns = TextColumn("requests ended"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begins(self, requests: int, shortened: int) -> None:
        self._progress.update(self._task, total=requests)
        if shortened:
            stderr.print(f"{shortened} of {requests} requests are cut to what their model's context holds", style="dim")

    def ended(self, sample: Sample) -> None:
        self._progress.advance(self._task)


def _table(result: LoadReport) -> Table:
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    for name, value in asdict(result).items():
        if name != "models":
            table.add_row(name, _shown(value))
    return table


def _models(result: LoadReport) -> Table:
    """The worst first."""
    table = Table("model", "requests", "tokens", "on time", "TTFT p50", "p99", "TBT p50", "p99", box=SIMPLE)
    worst = sorted(result.models.items(), key=lambda item: item[1].token_attainment)
    for name, own in worst[:MODELS_SHOWN]:
        times = [*_ends(own.ttft), *_ends(own.tbt)]
        table.add_row(escape(name), str(own.requests), str(own.tokens), f"{own.token_attainment:.3f}", *times)
    if len(worst) > MODELS_SHOWN:
        table.caption = f"and {len(worst) - MODELS_SHOWN} more, none of them worse"
    return table


def _ends(times: Percentiles | None) -> tuple[str, str]:
    return (_seconds(times.p50), _seconds(times.p99)) if times else ("", "")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        own = (f"{name} {_seconds(each) if isinstance(each, float) else each}" for name, each in value.items())
        return "  ".join(own) or "none"
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _seconds(value_s: float) -> str:
    return f"{value_s:.2f} s" if value_s >= 1 else f"{value_s * 1000:.0f} ms"


def _draw(samples: Sequence[Sample], path: Path) -> None:
    """How TTFT and TBT are spread over all requests."""
    with options.refusals():
        from hekaton.sim.figures import panels

        firsts = [sample.token_times_s[0] for sample in samples if sample.token_times_s]
        gaps = [gap for sample in samples for gap in sample.gaps_s]
        curves = {
            "time to first token": {"all requests": _spread(firsts)},
            "time between tokens": {"all requests": _spread(gaps)},
        }
        panels(curves, "seconds", "share that took no longer", SUSTAINED, path)


def _spread(values_s: Sequence[float]) -> list[tuple[float, float]]:
    """At every hundredth."""
    ranked = sorted(values_s)
    return [(ranked[int((len(ranked) - 1) * part / 100)], part / 100) for part in range(101)] if ranked else []
