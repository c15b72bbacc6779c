"""`hekaton plan`: how many accelerators a market needs, under each policy."""

import json
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Column, Table

from hekaton.cli import sim_options as options
from hekaton.cli.common import console
from hekaton.errors import InvalidArgument
from hekaton.sim import market as markets
from hekaton.sim.market import Market
from hekaton.sim.plan import DEDICATED, Plan, assumptions
from hekaton.sim.plan import plan as search
from hekaton.sim.run import Settings
from hekaton.sim.trials import DURATION_S, Traffic

SAMPLES = files("hekaton.sim") / "markets"
NOT_ENOUGH = "never enough"


def plan(
    catalog_file: options.CatalogFile = None,
    sample: Annotated[str, typer.Option(help="A market that is shipped: production or thousand.")] = "",
    device: options.Device = "h20",
    device_memory: options.DeviceMemory = "",
    bandwidth_gbps: options.BandwidthGbps = 16.0,
    policy: Annotated[list[str] | None, typer.Option(help="May be repeated; by default all.")] = None,
    slo: options.SloScale = None,
    lengths_file: options.LengthsFile = None,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = DURATION_S,
    ttft: options.Ttft = 10.0,
    tbt: options.Tbt = 0.1,
    seeds: options.Seeds = 3,
    jobs: options.Jobs = 0,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Of one device, to print cost.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw a picture here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Find the smallest pool that keeps 90 % of a market's tokens on time, under each policy.

    Models of different tensor-parallel degrees get pools of their own, whose GPUs are added up.
    """
    with options.refusals():
        market = _market(catalog_file, sample)
        draw = _pencil(svg) if svg else None
        traffic = Traffic(duration, lengths=options.lengths_of(lengths_file), seeds=tuple(range(seeds)))
        settings = Settings(
            device=device,
            device_memory_bytes=options.memory_bytes(device_memory),
            bandwidth_bytes_per_s=bandwidth_gbps * options.GB,
            ttft_s=ttft,
            tbt_s=tbt,
        )
        with options.processes(jobs) as executor, options.Watch() as watch:
            plans = search(
                market,
                settings,
                traffic,
                executor,
                policies=policy or (),
                slo_scales=slo or (1.0,),
                seen=lambda name, scale, devices, point: watch.show(
                    f"{name}, {scale:g} x SLO, workers of {devices}",
                    f"{point.size} workers, {point.token_attainment:.3f} on time",
                ),
            )
        notes = [markets.summary(market), *assumptions(market, settings, traffic)]
        if draw:
            draw(plans, device)
    if as_json:
        typer.echo(json.dumps({"device": device, "assumptions": notes, "plans": _facts(plans, gpu_hour_price)}))
    else:
        console.print(_table(plans, device, gpu_hour_price))
        for note in notes:
            console.print(f"- {note}", soft_wrap=True, markup=False)


def _market(file: Path | None, sample: str) -> Market:
    if (file is None) == (not sample):
        raise InvalidArgument("give a market: --catalog FILE or --sample production")
    if file:
        return markets.read(file)
    known = sorted(one.name.removesuffix(".yaml") for one in SAMPLES.iterdir() if one.name.endswith(".yaml"))
    if sample not in known:
        raise InvalidArgument(f"no sample market {sample!r}; there are {', '.join(known)}")
    with as_file(SAMPLES / f"{sample}.yaml") as path:
        return markets.read(path)


def _baseline(plans: list[Plan], scale: float) -> Plan | None:
    return next((one for one in plans if one.policy == DEDICATED and one.slo_scale == scale), None)


def _facts(plans: list[Plan], price: float | None) -> list[dict[str, object]]:
    return [
        {
            "policy": one.policy,
            "slo_scale": one.slo_scale,
            "gpus": one.gpus,
            "saving_against_dedicated": one.saving(_baseline(plans, one.slo_scale)),
            "cost_per_hour": None if price is None or one.gpus is None else price * one.gpus,
            "pools": [
                {
                    "devices_per_worker": pool.devices,
                    "models": pool.models,
                    "workers": pool.workers,
                    "gpus": pool.gpus,
                    "policy_options": dict(pool.variant.options),
                }
                for pool in one.pools
            ],
        }
        for one in plans
    ]


def _table(plans: list[Plan], device: str, price: float | None) -> Table:
    degrees = [f"on {pool.devices} each" for pool in plans[0].pools]
    costs = [] if price is None else ["cost an hour"]
    name = Column("policy", no_wrap=True)
    table = Table(name, "SLO", *degrees, f"{device} in all", "saving", *costs, box=SIMPLE, pad_edge=False)
    for one in plans:
        saving = one.saving(_baseline(plans, one.slo_scale))
        cells = [
            NOT_ENOUGH if count is None else str(count) for count in (*(pool.gpus for pool in one.pools), one.gpus)
        ]
        cost = [] if price is None else ["" if one.gpus is None else f"{price * one.gpus:,.2f}"]
        table.add_row(one.policy, f"{one.slo_scale:g} x", *cells, "" if saving is None else f"{saving:.0%}", *cost)
    return table


def _pencil(path: Path) -> Callable[[list[Plan], str], None]:
    """What draws a plan. Raises InvalidArgument if it cannot, before the long search."""
    from hekaton.sim.figures import bars  # It needs an optional package.

    if not path.parent.is_dir():
        raise InvalidArgument(f"--svg: there is no folder {path.parent}")

    def draw(plans: list[Plan], device: str) -> None:
        scales = sorted({one.slo_scale for one in plans}, reverse=True)
        policies = list(dict.fromkeys(one.policy for one in plans))
        gpus = {(one.policy, one.slo_scale): one.gpus for one in plans}
        groups = {f"{scale:g} x SLO": [gpus[policy, scale] for policy in policies] for scale in scales}
        bars(policies, groups, f"{device} GPUs needed", path)

    return draw
