"""One run: a pool, a load, faults one after the other, and the verdict."""

import asyncio
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import structlog

from hekaton.chaos import faults, verify
from hekaton.chaos.faults import Drawer, Fault
from hekaton.chaos.load import Load, cases
from hekaton.chaos.pool import REPLICAS, BreakablePool
from hekaton.chaos.report import Report, report
from hekaton.client import Client
from hekaton.engine.profiles import emulated_spec
from hekaton.errors import EngineFailed, InvalidArgument
from hekaton.facts import Slo
from hekaton.store.connect import connect
from hekaton.tasks import end

log = structlog.get_logger(__name__)
ARCHITECTURES = ("llama", "qwen3", "gpt2")
EMULATED_CLASS = "qwen2.5-7b"
EMULATED = "emulated:"
SLO = Slo(ttft_s=60.0, tbt_s=1.0)
DEVICE_MEMORY = {True: "40GB", False: "1MiB"}
"""Of an emulated device, and of a real one: two of the models and their KV."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    scenario: str
    requests: int
    seed: int
    device: str = "cpu"
    concurrency: int = 24
    interval_s: tuple[float, float] = (2.0, 5.0)
    """Between the beginnings of two faults."""
    longest_s: float = 20.0
    """Of a freeze."""
    log_dir: Path | None = None

    @property
    def emulated(self) -> bool:
        return self.device.startswith(EMULATED)


async def run(options: ChaosOptions, say: Callable[[str], None]) -> Report:
    """Raises Unavailable if the pool does not start."""
    with tempfile.TemporaryDirectory(prefix="hekaton-chaos-") as temporary:
        models_dir = Path(temporary)
        memory = DEVICE_MEMORY[options.emulated]
        async with BreakablePool(options.device, memory, options.log_dir, say) as pool:
            async with Client(pool.stack.address) as client:
                models = await registered(client, options.device, models_dir)
            async with connect(pool.redis.url) as redis:
                random = Random(options.seed)
                todo = cases(options.requests, models, random, uuid.uuid4().hex[:8])
                load = Load(pool.stack.addresses, redis, todo, options.concurrency)
                clock = asyncio.get_running_loop().time
                started_s, done = clock(), list[tuple[float, Fault]]()
                breaking = asyncio.create_task(_break(pool, options, random, done, load, say), name="faults")
                try:
                    await load.run()
                finally:
                    await end(breaking)
                if not breaking.cancelled():
                    breaking.result()
                duration_s = clock() - started_s
        checked = load.outcomes
        found = (
            verify.emulated(checked, emulated_spec(EMULATED_CLASS))
            if options.emulated
            else await verify.real(checked, models_dir)
        )
    for outcome in checked:
        first_wrong = found.wrong.get(outcome.case.request_id)
        if outcome.reason or first_wrong is not None:
            say(f"{outcome.case.request_id}: {outcome.end} {outcome.reason}; first wrong token: {first_wrong}")
    return report(
        checked,
        done,
        found.wrong,
        scenario=options.scenario,
        seed=options.seed,
        device=options.device,
        duration_s=duration_s,
        ties=found.ties,
    )


async def _break(
    pool: BreakablePool,
    options: ChaosOptions,
    random: Random,
    done: list[tuple[float, Fault]],
    load: Load,
    say: Callable[[str], None],
) -> None:
    """Until cancelled. Faults may overlap; what is broken is mended at the end."""
    clock = asyncio.get_running_loop().time
    possible = faults.possible(options.scenario, emulated=options.emulated)
    if not possible:
        raise InvalidArgument("emulated devices need no memory service: choose another scenario, or --device cpu")
    drawer, broken = Drawer(random, possible, REPLICAS, options.longest_s), set[str]()

    async def inflict(fault: Fault) -> None:
        broken.add(fault.target)
        try:
            await pool.inflict(fault)
        finally:
            broken.discard(fault.target)

    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(random.uniform(*options.interval_s))
            fault = drawer.draw(broken)
            if fault is None:
                continue
            say(f"{fault.kind} {fault.target} for {fault.duration_s:.1f} s; {load.done} requests done")
            done.append((clock(), fault))
            group.create_task(inflict(fault), name=f"break {fault.target}")


async def registered(client: Client, device: str, models_dir: Path) -> list[str]:
    """The names of the pool's models, once it has them. Real ones are written to `models_dir` first."""
    emulated = device.startswith(EMULATED)
    if not emulated:
        await _write_models(models_dir, ARCHITECTURES)
    for name in ARCHITECTURES:
        source = EMULATED + EMULATED_CLASS if emulated else str(models_dir / name)
        await client.register_model(name, source, dtype="" if emulated else "float32", slo=SLO)
    return list(ARCHITECTURES)


async def _write_models(directory: Path, architectures: Sequence[str]) -> None:
    command = [sys.executable, "-m", "hekaton.engine.tiny", str(directory), *architectures]
    child = await asyncio.create_subprocess_exec(*command)
    if status := await child.wait():
        raise EngineFailed(f"the models could not be written: exit status {status}")
