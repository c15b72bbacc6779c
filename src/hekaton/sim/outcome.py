"""What became of one request. The three measures of lateness are those of the paper's page; never mix them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hekaton.sim.request import SimRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request at its end. One that was refused has no TTFT, and all its tokens are late."""

    model: str
    arrival_s: float
    tokens: int
    on_time: int
    qos: float
    ttft_s: float | None
    finished: bool
    tenant: str = ""


def finished(request: SimRequest) -> Outcome:
    times_s = request.token_times_s()
    due_s = request.arrival_s + request.ttft_s + np.arange(len(times_s)) * request.tbt_s
    return Outcome(
        model=request.model,
        arrival_s=request.arrival_s,
        tokens=len(times_s),
        on_time=int(np.count_nonzero(times_s <= due_s)),
        qos=qos(times_s - request.arrival_s, request.ttft_s, request.tbt_s),
        ttft_s=float(times_s[0]) - request.arrival_s,
        finished=True,
        tenant=request.tenant,
    )


def refused(request: SimRequest) -> Outcome:
    tokens = request.output_tokens
    return Outcome(request.model, request.arrival_s, tokens, 0, 0.0, ttft_s=None, finished=False, tenant=request.tenant)


def qos(times_s: NDArray[np.float64], ttft_s: float, tbt_s: float) -> float:
    """The artifact's cumulative-time ratio of one request; `times_s` count from its arrival.

    Token i has the target ttft + i·tbt, counted from the last token that missed its target (at first, from arrival).
    What counts is the target of the last token before each miss, and the rest at the end; divided by the whole time.
    """
    targets_s = ttft_s + np.arange(len(times_s) + 1) * tbt_s
    good_s = start_s = 0.0
    begin = 0
    while begin < len(times_s):
        missed = np.flatnonzero(times_s[begin:] - start_s > targets_s[begin:-1])
        if not len(missed):
            break
        miss = begin + int(missed[0])
        good_s += targets_s[miss - 1] if miss > begin else 0.0
        start_s = float(times_s[miss])
        begin = miss + 1
    end_s = float(times_s[-1])
    return float((good_s + min(float(targets_s[-1]), end_s - start_s)) / end_s)
