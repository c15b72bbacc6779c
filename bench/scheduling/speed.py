"""How fast the simulator is, on one core and in a process of its own."""

import resource
from collections.abc import Iterator

from bench.scheduling.checks import Check
from bench.scheduling.runs import Bench, Load, generated
from hekaton.cli.sim_options import processes
from hekaton.sim.report import Report
from hekaton.sim.run import Settings
from hekaton.sim.trials import Traffic

GIB = 1 << 30
KIB = 1 << 10
SPEED, SPEED_S, SPEED_WALL_S = Load(80, 0.1), 120.0, 3.0
SCALE, SCALE_S, SCALE_WALL_S = Load(6000, 0.037), 600.0, 600.0
SCALE_GPUS = 1000
SCALE_GIB = 4.0


def speed(bench: Bench) -> Iterator[Check]:
    report, _ = _alone(SPEED, 16, SPEED_S, bench)
    yield from _checks(f"{SPEED}, 16 GPUs", report, SPEED_S, SPEED_WALL_S)


def scale(bench: Bench) -> Iterator[Check]:
    report, peak_gib = _alone(SCALE, SCALE_GPUS, SCALE_S, bench)
    yield from _checks(f"{SCALE}, {SCALE_GPUS} GPUs", report, SCALE_S, SCALE_WALL_S)
    yield Check(f"{SCALE}, {SCALE_GPUS} GPUs: peak memory in GiB", peak_gib, most=SCALE_GIB)


def _checks(what: str, report: Report, duration_s: float, most_s: float) -> Iterator[Check]:
    yield Check(f"{what}, {duration_s:g} s: wall in s", report.wall_s, most=most_s)
    note = f"{report.requests} requests, attainment {report.token_attainment:.4f}"
    yield Check(f"{what}: times real time", duration_s / report.wall_s, duration_s / most_s, note=note)


def _alone(load: Load, gpus: int, duration_s: float, bench: Bench) -> tuple[Report, float]:
    """The report, and the peak memory of the process in GiB."""
    traffic = Traffic(duration_s, lengths=bench.traffic().lengths)
    with processes(1) as executor:
        return executor.submit(_measured, load, gpus, traffic).result()


def _measured(load: Load, gpus: int, traffic: Traffic) -> tuple[Report, float]:
    report = generated(load.rates_per_s(), Settings(gpus=gpus), traffic, seed=0)
    return report, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / GIB
