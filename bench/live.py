"""Does the live pool do what the simulator says? `python -m bench.live [--policy NAME] [--models N] [--rate R] …`

The same requests go through a pool of emulated devices, with real services, Redis and gRPC, and through the simulator,
under the same policy. Time is stretched, so that a small machine can be sixteen workers; then what the services
themselves need counts so many times less than it would, and both figures stand for the emulated hardware only.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import cpu_name
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client
from hekaton.engine.profiles import SOURCE_PREFIX
from hekaton.load.report import LoadReport, report
from hekaton.load.session import Doors, LoadPlan, Watcher, load
from hekaton.policy.registry import POLICIES
from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Poisson
from hekaton.sim.catalog import hardware, mix
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate
from hekaton.sim.workload import Arrival

LENGTHS = Path(__file__).parent / "data" / "sharegpt_lengths_sample.csv"
CONTEXT_TOKENS = 4096
"""Of emulated models."""


@dataclass(frozen=True, slots=True)
class Comparison:
    policy: str
    models: int
    workers: int
    requests: int
    time_scale: float
    simulated: Report
    live: LoadReport

    @property
    def difference(self) -> float:
        return self.live.token_attainment - self.simulated.token_attainment


def stretched(name: str, options: Mapping[str, float], scale: float) -> dict[str, float]:
    """A policy's options on a clock that runs so many times slower."""
    defaults = {field.name: field.default for field in fields(POLICIES[name])}
    values = {option: float(str(value)) for option, value in (defaults | dict(options)).items()}
    return {option: value * _factor(option, scale) for option, value in values.items()}


def _factor(option: str, scale: float) -> float:
    return scale if option.endswith("_s") else 1.0


async def compare(
    asked: list[Arrival],
    settings: Settings,
    time_scale: float,
    told: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Runs both, one after the other."""
    models = sorted({one.model for one in asked})
    told("simulating")
    simulated = simulate(asked, settings, models)
    memory = hardware(models, None, settings.device, None, settings.bandwidth_bytes_per_s).memory_bytes
    options = StackOptions(
        device=f"{SOURCE_PREFIX}{settings.device}",
        device_memory=str(memory),
        workers=settings.gpus,
        policy=settings.policy,
        policy_options=stretched(settings.policy, settings.policy_options, time_scale),
        time_scale=time_scale,
    )
    told(f"starting {settings.gpus} workers")
    async with Stack(options, told) as stack:
        async with Client(stack.address) as client:
            for model, served in mix(models).items():
                await client.register_model(model, f"{SOURCE_PREFIX}{served.profile}")
        told(f"sending {len(asked)} requests over {time_scale * asked[-1].arrival_s:.0f} s")
        plan = LoadPlan(lambda names: asked, models, settings.ttft_s, settings.tbt_s, time_scale=time_scale)
        ended = 0

        def count(sample: object) -> None:
            nonlocal ended
            ended += 1
            if ended % 100 == 0:
                told(f"{ended} of {len(asked)} requests have ended")

        samples = await load(Doors([stack.address]), plan, Watcher(ended=count))
    return Comparison(settings.policy, len(models), settings.gpus, len(asked), time_scale, simulated, report(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append", help="repeatable (slack and aegaeon)")
    parser.add_argument("--models", type=int, default=80)
    parser.add_argument("--rate", type=float, default=0.1, help="requests a second and model")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--device", default="h800")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of arrivals")
    parser.add_argument("--workload", type=Path, help="a CSV, instead of --models, --rate and --duration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=4.0)
    parser.add_argument("--json", action="store_true", help="print one object, and nothing else on stdout")
    arguments = parser.parse_args()
    asked = _asked(arguments)
    stderr = Console(stderr=True)
    results = []
    for name in arguments.policy or ["slack", "aegaeon"]:
        settings = Settings(policy=name, gpus=arguments.workers, device=arguments.device)
        told = partial(stderr.print, f"{name}:", style="dim")
        results.append(asyncio.run(compare(asked, settings, arguments.time_scale, told)))
    if arguments.json:
        print(json.dumps({one.policy: asdict(one) | {"difference": one.difference} for one in results}))
    else:
        Console().print(_table(results, arguments.device))


def _asked(arguments: argparse.Namespace) -> list[Arrival]:
    if arguments.workload:
        asked = workload.read(arguments.workload)
    else:
        rates = {f"m{index:02d}": arguments.rate for index in range(arguments.models)}
        asked = workload.generate(rates, arguments.duration, Poisson(), lengths.read(LENGTHS), arguments.seed)
    return [one for one in asked if one.input_tokens + one.output_tokens <= CONTEXT_TOKENS]


def _table(results: list[Comparison], device: str) -> Table:
    machine = f"{os.cpu_count()} cores of {cpu_name()}"
    table = Table(
        "policy", "models", "requests", "simulated", "live", "difference", "client late, p99",
        title=f"token attainment, {results[0].workers} emulated {device}, time × {results[0].time_scale:g} ({machine})",
    )  # fmt: skip
    for one in results:
        table.add_row(
            one.policy,
            str(one.models),
            str(one.requests),
            f"{one.simulated.token_attainment:.3f}",
            f"{one.live.token_attainment:.3f}",
            f"{one.difference:+.3f}",
            f"{one.live.sent_late.p99 * 1000:.0f} ms",
        )
    return table


if __name__ == "__main__":
    main()
