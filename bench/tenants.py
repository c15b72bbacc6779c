"""Does a tenant suffer from another's load? `python -m bench.tenants [--json] [--factor 20] [--duration S]`.

Two tenants with API keys and equal weights share one emulated h800 through real services, four models each. One asks
for each of his models every twenty seconds. The other first does the same, then `factor` times as much, for the same
requests of the first; then once more in the first one's name, so that nobody can be told from anybody.
`p95_ttft_over` is the 95th percentile of the quiet tenant's time to the first token ÷ that of the first run.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.machine import cpu_name
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client
from hekaton.engine.profiles import SOURCE_PREFIX
from hekaton.facts import Slo, Tenant
from hekaton.load.api import GrpcApi
from hekaton.load.driver import drive
from hekaton.load.sample import Sample
from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Poisson
from hekaton.sim.catalog import mix
from hekaton.sim.workload import Arrival
from hekaton.store.connect import connect
from hekaton.store.tenants import Tenants
from hekaton.tasks import end

LENGTHS = Path(__file__).parent / "data" / "sharegpt_lengths_sample.csv"
DEVICE = "h800"
RATE_PER_S = 0.05
SLO = Slo(10.0, 0.1)
MODELS = tuple(f"m{index:02d}" for index in range(8))
QUIET, LOUD = MODELS[:4], MODELS[4:]
TIMEOUT_S = 3000.0


@dataclass(frozen=True, slots=True)
class Result:
    requests: int
    """Of the quiet tenant."""
    p95_ttft_s: float
    """Beside one who asks for as little."""
    beside_a_loud_tenant_s: float
    beside_the_same_load_of_his_own_s: float
    p95_ttft_over: float
    own_p95_ttft_over: float


class Keys:
    """Of an administrator and of the two tenants."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    async def create(self, tenant: Tenant) -> str:
        async with connect(self._redis_url) as redis:
            await Tenants(redis).put(tenant)
            return await Tenants(redis).create_key(tenant.name)


def asked(models: Sequence[str], rate_per_s: float, duration_s: float, seed: int) -> list[Arrival]:
    rates = dict.fromkeys(models, rate_per_s)
    return workload.generate(rates, duration_s, Poisson(), lengths.read(LENGTHS), seed)


async def beside(quiet: Client, other: Client, more: Sequence[Arrival], duration_s: float, scale: float) -> list[float]:
    """Seconds to the first token, as the profile counts, of the quiet tenant's requests while others are sent."""
    slos = dict.fromkeys(MODELS, Slo(SLO.ttft_s * scale, SLO.tbt_s * scale))
    beside = asyncio.create_task(drive(GrpcApi([other]), more, slos, timeout_s=TIMEOUT_S, time_scale=scale))
    mine = asked(QUIET, RATE_PER_S, duration_s, 0)
    samples = await drive(GrpcApi([quiet]), mine, slos, timeout_s=TIMEOUT_S, time_scale=scale)
    await end(beside)
    return [_ttft_s(sample) / scale for sample in samples]


def _ttft_s(sample: Sample) -> float:
    if not sample.finished:
        raise RuntimeError(f"a request ended with {sample.status}")
    return sample.token_times_s[0]


async def measure(factor: float, duration_s: float, scale: float) -> Result:
    options = StackOptions(device=f"{SOURCE_PREFIX}{DEVICE}", device_memory="80GB", auth=True, time_scale=scale)
    async with Stack(options, lambda text: None) as stack:
        keys = Keys(stack.redis_url)
        async with (
            Client(stack.address, api_key=await keys.create(Tenant("admin", admin=True))) as admin,
            Client(stack.address, api_key=await keys.create(Tenant("quiet"))) as quiet,
            Client(stack.address, api_key=await keys.create(Tenant("loud"))) as loud,
        ):
            for model, served in mix(list(MODELS)).items():
                await admin.register_model(model, f"{SOURCE_PREFIX}{served.profile}")
            little = asked(LOUD, RATE_PER_S, duration_s, 1)
            much = asked(LOUD, factor * RATE_PER_S, duration_s, 1)
            before = await beside(quiet, loud, little, duration_s, scale)
            fair = await beside(quiet, loud, much, duration_s, scale)
            own = await beside(quiet, quiet, much, duration_s, scale)
    first, second, third = (float(np.percentile(each, 95)) for each in (before, fair, own))
    return Result(len(before), first, second, third, second / first, third / first)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--factor", type=float, default=20.0)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of arrivals")
    parser.add_argument("--time-scale", type=float, default=0.5)
    args = parser.parse_args()
    result = asyncio.run(measure(args.factor, args.duration, args.time_scale))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "device": f"emulated:{DEVICE}", **asdict(result)}))
        return
    table = Table(title=f"p95 TTFT of {result.requests} requests on one emulated {DEVICE}", show_header=False)
    table.add_row("beside a tenant who asks for as little", f"{result.p95_ttft_s:.2f} s", "")
    for what, seconds, over in (
        (f"for {args.factor:g} times as much", result.beside_a_loud_tenant_s, result.p95_ttft_over),
        ("the same in his own name", result.beside_the_same_load_of_his_own_s, result.own_p95_ttft_over),
    ):
        table.add_row(what, f"{seconds:.2f} s", f"{over:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
