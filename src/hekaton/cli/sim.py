"""`hekaton sim`: what a pool would do, in virtual time, under the policies that the live pool runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from hekaton.cli.common import byte_size, console, stderr
from hekaton.errors import HekatonError, InvalidArgument
from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Arrivals, Gamma, Poisson
from hekaton.sim.catalog import names
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate
from hekaton.sim.workload import Arrival

USAGE_ERROR = 2
GB = 1e9

app = typer.Typer(no_args_is_help=True, help="Simulate a pool, policies and all, in virtual time.")


@app.callback()
def _group() -> None:
    pass


@app.command("run")
def run(
    policy: Annotated[str, typer.Option(help="The turn policy.")] = "slack",
    policy_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the policy; may be repeated.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="Devices in the pool.")] = 16,
    device: Annotated[str, typer.Option(help="a10, a100, h100, h800 or h20.")] = "h800",
    device_memory: Annotated[
        str, typer.Option(help="For weights and KV, as 72GB; by default nine tenths of the device's.")
    ] = "",
    bandwidth_gbps: Annotated[float, typer.Option(help="Host to device, in gigabytes a second.")] = 16.0,
    workload_file: Annotated[
        Path | None,
        typer.Option("--workload", help=f"CSV of {','.join(workload.HEADER)}; else one is generated."),
    ] = None,
    models: Annotated[int, typer.Option(help="Models of the generated workload.")] = 80,
    rate: Annotated[float, typer.Option(help="Requests a second and model.")] = 0.1,
    lengths_file: Annotated[
        Path | None,
        typer.Option("--lengths", help=f"CSV of {','.join(lengths.HEADER)} to draw from; else log-normal."),
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 300.0,
    burstiness: Annotated[
        float, typer.Option(help="Coefficient of variation of the gaps between arrivals; 1 is Poisson.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the generated workload.")] = 0,
    ttft: Annotated[float, typer.Option(help="Seconds to the first token.")] = 10.0,
    tbt: Annotated[float, typer.Option(help="Seconds between tokens.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run one workload to its end and report how many tokens were on time."""
    try:
        settings = Settings(
            policy=policy,
            policy_options=_options(policy_option or []),
            gpus=gpus,
            device=device,
            device_memory_bytes=byte_size(device_memory, "--device-memory") if device_memory else None,
            bandwidth_bytes_per_s=bandwidth_gbps * GB,
            ttft_s=ttft,
            tbt_s=tbt,
        )
        if workload_file:
            result = simulate(workload.read(workload_file), settings)
        else:
            market = names(models)
            arrivals = _generated(market, rate, lengths_file, duration, burstiness, seed)
            result = simulate(arrivals, settings, market)
    except (HekatonError, OSError, UnicodeDecodeError) as error:
        _refuse(str(error))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        console.print(_table(result))


def _generated(
    market: list[str], rate: float, lengths_file: Path | None, duration: float, burstiness: float, seed: int
) -> list[Arrival]:
    if seed < 0:
        raise InvalidArgument(f"a seed is at least 0, not {seed}")
    arrivals: Arrivals = Poisson() if burstiness == 1 else Gamma(burstiness)
    drawn = lengths.read(lengths_file) if lengths_file else lengths.LogNormal()
    return workload.generate(market, rate, duration, arrivals, drawn, seed)


def _options(given: list[str]) -> dict[str, float]:
    options: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise InvalidArgument(f"policy option {text!r} is not NAME=NUMBER") from None
    return options


def _refuse(message: str) -> NoReturn:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(USAGE_ERROR)


def _table(result: Report) -> Table:
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table
