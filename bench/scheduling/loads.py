"""`slack` on 16 h800 under loads that are uneven, bursty, or not as profiled."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from bench.scheduling.checks import Check
from bench.scheduling.runs import LARGE, SMALL, Bench, Load, model_of
from hekaton.sim import workload
from hekaton.sim.arrivals import Gamma
from hekaton.sim.catalog import hardware
from hekaton.sim.outcome import Outcome
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, Simulation
from hekaton.sim.trials import SUSTAINED, Traffic
from hekaton.sim.workload import Arrival

SHARE = 0.8
"""Of the sustained load, where fairness and wrong costs are measured."""
WORST_MODEL = 0.75
HOTTER = 50.0
OTHERS_LOSE = 0.02
HOT_STREAM = 1_000_000
"""Added to the seed of the hot model's requests, which come besides those of the others."""
SLOWER = 10.0
BURST_SHARE = 0.6
BURST_CV = 4.0


def fairness(bench: Bench) -> Iterator[Check]:
    """The worst model; then what the others lose to one with 50 times their rate.

    It takes its share of the same requests a second, or it comes on top of them: where that is more than the pool can
    do, it should bear the loss itself.
    """
    for load in (one.scaled(SHARE) for one in bench.sustained):
        reports = bench.reports(load, Settings())
        overall = f"all models {fmean(report.token_attainment for report in reports):.4f}"
        worst = min(report.min_model_attainment for report in reports)
        yield Check(f"{load}: worst model of any seed", worst, WORST_MODEL, note=overall)
        shared_per_s = load.rate_per_s * load.models / (load.models + HOTTER)
        for profile in (SMALL, LARGE):
            yield _hot(bench, load, profile, shared_per_s, "same total")
            yield _hot(bench, load, profile, load.rate_per_s, "on top")


def beliefs(bench: Bench) -> Iterator[Check]:
    """Policies are told wrong times; or a model is slower than anybody knows."""
    wrong = {
        "told twice the true times": Settings(belief=2.0),
        "told half the true times": Settings(belief=0.5),
        f"a 7 B model {SLOWER:g} × slower": Settings(slow={model_of(SMALL): SLOWER}),
        f"a 13 B model {SLOWER:g} × slower": Settings(slow={model_of(LARGE): SLOWER}),
    }
    for load in (one.scaled(SHARE) for one in bench.sustained):
        for name, settings in wrong.items():
            reports = bench.reports(load, settings)
            yield _overall(f"{load}: {name}", reports)


def bursts(bench: Bench) -> Iterator[Check]:
    """Gamma arrivals."""
    for load in (one.scaled(BURST_SHARE) for one in bench.sustained):
        reports = bench.reports(load, Settings(), Gamma(BURST_CV))
        yield _overall(f"{load}: CV {BURST_CV:g}", reports)


def _overall(what: str, reports: Sequence[Report]) -> Check:
    worst = f"worst model {min(report.min_model_attainment for report in reports):.3f}"
    return Check(what, fmean(report.token_attainment for report in reports), SUSTAINED, note=worst)


def _hot(bench: Bench, load: Load, profile: str, others_rate_per_s: float, note: str) -> Check:
    market = Load(load.models, others_rate_per_s)
    runs = [bench.executor.submit(beside_a_hot_one, market, profile, bench.traffic(), seed) for seed in bench.seeds]
    before, after, itself = (fmean(values) for values in zip(*(run.result() for run in runs), strict=True))
    what = f"{market}: others lose to a {profile} at {HOTTER * others_rate_per_s:.3g}/s, {note}"
    return Check(what, before - after, most=OTHERS_LOSE, note=f"{before:.4f} → {after:.4f}; the hot one {itself:.4f}")


def beside_a_hot_one(load: Load, profile: str, traffic: Traffic, seed: int) -> tuple[float, float, float]:
    """Token attainment of a load's models by themselves, then beside a hot one, and its own.

    The requests of the others are the same.
    """
    hot = model_of(profile, load.models)
    hot_rates = {hot: HOTTER * load.rate_per_s}
    asked = workload.generate(load.rates_per_s(), traffic.duration_s, traffic.arrivals, traffic.lengths, seed)
    more = workload.generate(hot_rates, traffic.duration_s, traffic.arrivals, traffic.lengths, seed + HOT_STREAM)
    before = _outcomes(asked)
    after = _outcomes(sorted([*asked, *more], key=lambda arrival: arrival.arrival_s))
    others = [outcome for outcome in after if outcome.model != hot]
    return _attainment(before), _attainment(others), _attainment([one for one in after if one.model == hot])


def _outcomes(asked: Sequence[Arrival]) -> list[Outcome]:
    settings = Settings()
    models = {arrival.model for arrival in asked}
    have = hardware(models, settings.catalog, settings.device, None, settings.bandwidth_bytes_per_s)
    pool = Simulation(settings, have.costs, have.memory_bytes)
    pool.run(asked)
    return pool.outcomes


def _attainment(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.on_time for outcome in outcomes) / sum(outcome.tokens for outcome in outcomes)
