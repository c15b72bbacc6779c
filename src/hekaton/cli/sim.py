"""`hekaton sim`: what a pool would do, in virtual time, under the policies that the live pool runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from hekaton.cli import sim_options as options
from hekaton.cli.common import console
from hekaton.cli.sim_search import compare, sustain
from hekaton.errors import InvalidArgument
from hekaton.policy.admission import Admission
from hekaton.policy.costs import DeviceProfile
from hekaton.sim import workload
from hekaton.sim.catalog import names
from hekaton.sim.measured import catalog_of
from hekaton.sim.popularity import Zipf
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate

DEFAULT_GBPS = 16.0

app = typer.Typer(no_args_is_help=True, help="Simulate a pool, policies and all, in virtual time.")


@app.command("run")
def run(
    policy: Annotated[str, typer.Option(help="The turn policy.")] = "slack",
    policy_option: options.PolicyOption = None,
    gpus: options.Gpus = 16,
    device: options.DeviceOrFile = "h800",
    device_memory: options.DeviceMemory = "",
    bandwidth_gbps: options.OwnBandwidthGbps = None,
    host_kv: options.HostKv = "320GB",
    host_weights: options.HostWeights = "",
    disk_gbps: options.DiskGbps = 3.0,
    switch_overhead_ms: options.SwitchOverheadMs = 0.0,
    catalog_file: options.CatalogFile = None,
    workload_file: Annotated[
        Path | None,
        typer.Option("--workload", help=f"CSV of {','.join(workload.HEADER)}; else one is generated."),
    ] = None,
    models: Annotated[int, typer.Option(help="Models of the generated workload.")] = 80,
    rate: options.Rate = 0.1,
    zipf: options.ZipfExponent = 0.0,
    lengths_file: options.LengthsFile = None,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 300.0,
    arrivals: options.ArrivalPattern = options.Pattern.POISSON,
    burstiness: options.Burstiness = 1.0,
    on_s: options.OnS = 30.0,
    off_s: options.OffS = 90.0,
    arrivals_file: options.ArrivalsFile = None,
    seed: Annotated[int, typer.Option(help="Of the generated workload.")] = 0,
    ttft: options.Ttft = 10.0,
    tbt: options.Tbt = 0.1,
    admission: options.AdmissionMode = Admission.QUEUE,
    as_json: options.Json = False,
) -> None:
    """Run one workload to its end and report how many tokens were on time."""
    with options.refusals():
        market = options.market_of(catalog_file) if catalog_file else None
        profile = options.measured_on(device)
        if market and profile:
            raise InvalidArgument("a catalog says what its models cost: give --device a name, or no --catalog")
        settings = Settings(
            policy=policy,
            policy_options=options.policy_options(policy_option),
            gpus=gpus,
            device=device,
            catalog=market.catalog if market else None,
            device_memory_bytes=options.memory_bytes(device_memory),
            bandwidth_bytes_per_s=(DEFAULT_GBPS if bandwidth_gbps is None else bandwidth_gbps) * options.GB,
            host=options.host_of(host_kv, host_weights, disk_gbps),
            switch_overhead_s=switch_overhead_ms / 1000,
            ttft_s=ttft,
            tbt_s=tbt,
            admission=admission,
        )
        known: list[str] = []
        if workload_file:
            asked = workload.read(workload_file)
        else:
            rates = market.rates_per_s if market else Zipf(rate, zipf).rates_per_s(names(models))
            pattern = options.arrivals_of(arrivals, burstiness, on_s, off_s, arrivals_file)
            asked = workload.generate(rates, duration, pattern, options.lengths_of(lengths_file), seed)
            known = list(rates)
        if profile:
            settings = _as_measured(settings, profile, {*known, *(one.model for one in asked)}, bandwidth_gbps)
        result = simulate(asked, settings, known)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        console.print(_table(result))


def _as_measured(
    settings: Settings, profile: DeviceProfile, models: Iterable[str], bandwidth_gbps: float | None
) -> Settings:
    """The run on the device of a profile, all models being the one that was measured there."""
    costs = profile.costs
    measured = replace(
        settings,
        device=profile.device,
        device_memory_bytes=settings.device_memory_bytes or profile.device_memory_bytes,
    )
    if bandwidth_gbps is not None:
        return replace(measured, catalog=catalog_of(models, replace(costs, swap_s_per_token=0.0)))
    bandwidth = costs.weight_bytes / costs.load_s
    return replace(measured, catalog=catalog_of(models, costs), bandwidth_bytes_per_s=bandwidth)


def _table(result: Report) -> Table:
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table


app.command("sustain")(sustain)
app.command("compare")(compare)
