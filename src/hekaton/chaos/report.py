"""What a run has shown."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hekaton.chaos.faults import Fault
from hekaton.chaos.load import End, Outcome

ALLOWED_FAILURES = frozenset(("WORKER_LOST", "DEADLINE_EXCEEDED"))
"""More lost workers than a request may lose, and its deadline."""
INTERRUPTED_S = 0.5
"""A stream that has waited so long since a fault was interrupted by it."""


@dataclass(frozen=True, slots=True)
class Report:
    scenario: str
    seed: int
    device: str
    duration_s: float
    requests: int
    accepted: int
    terminal: int
    finished: int
    cancelled: int
    failed: int
    failures: Mapping[str, int]
    """By reason."""
    lost: int
    wrong_tokens: int
    duplicated_tokens: int
    tokens: int
    ties: int
    faults: Mapping[str, int]
    """By kind and target."""
    kinds: Mapping[str, int]
    """Faults by kind."""
    kinds_in_flight: Mapping[str, int]
    """Of these, those that came while accepted requests had not ended."""
    interrupted: int
    """Streams that a fault held up for longer than INTERRUPTED_S."""
    recovery_p50_s: float | None
    """From the fault to the next token of a stream that it interrupted."""
    recovery_p99_s: float | None

    @property
    def held(self) -> bool:
        """Whether the contract did."""
        unexplained = set(self.failures) - ALLOWED_FAILURES
        return not (self.lost or self.wrong_tokens or self.duplicated_tokens or unexplained)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "held": self.held}


def report(
    outcomes: Sequence[Outcome],
    faults: Sequence[tuple[float, Fault]],
    wrong: Mapping[str, int],
    *,
    scenario: str,
    seed: int,
    device: str,
    duration_s: float,
    ties: int,
) -> Report:
    """`faults` come with their times, in order; `wrong` is the first wrong token by request."""
    ends = Counter(outcome.end for outcome in outcomes)
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    waits = sorted(recoveries(outcomes, [at_s for at_s, _ in faults]))
    return Report(
        scenario=scenario,
        seed=seed,
        device=device,
        duration_s=round(duration_s, 1),
        requests=len(outcomes),
        accepted=len(accepted),
        terminal=sum(outcome.end is not End.LOST for outcome in accepted),
        finished=ends[End.FINISHED],
        cancelled=ends[End.CANCELLED],
        failed=ends[End.FAILED],
        failures=dict(Counter(outcome.reason for outcome in outcomes if outcome.end is End.FAILED)),
        lost=ends[End.LOST],
        wrong_tokens=len(wrong),
        duplicated_tokens=sum(outcome.duplicated_tokens for outcome in outcomes),
        tokens=sum(len(outcome.token_ids) for outcome in outcomes),
        ties=ties,
        faults=dict(Counter(fault.label for _, fault in faults)),
        kinds=dict(Counter(fault.kind for _, fault in faults)),
        kinds_in_flight=dict(Counter(fault.kind for at_s, fault in faults if _in_flight(accepted, at_s))),
        interrupted=len(waits),
        recovery_p50_s=round(float(np.percentile(waits, 50)), 2) if waits else None,
        recovery_p99_s=round(float(np.percentile(waits, 99)), 2) if waits else None,
    )


def _in_flight(accepted: Sequence[Outcome], at_s: float) -> bool:
    return any(outcome.arrivals_s[0] < at_s < outcome.arrivals_s[-1] for outcome in accepted)


def recoveries(outcomes: Sequence[Outcome], faults_s: Sequence[float]) -> list[float]:
    """For each pause of a stream in which a fault began: how long after the first such fault it went on."""
    waits = []
    for outcome in outcomes:
        for before_s, after_s in zip(outcome.arrivals_s, outcome.arrivals_s[1:], strict=False):
            place = bisect_left(faults_s, before_s)
            if place < len(faults_s) and faults_s[place] < after_s and after_s - faults_s[place] > INTERRUPTED_S:
                waits.append(after_s - faults_s[place])
    return waits
