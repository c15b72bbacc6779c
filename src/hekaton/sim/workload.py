"""Workloads: which request arrives when, of what lengths. Read from a file, or made of independent generators."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hekaton.errors import InvalidArgument
from hekaton.sim.arrivals import Arrivals
from hekaton.sim.lengths import Lengths

HEADER = ["arrival_seconds", "model", "input_tokens", "output_tokens"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload."""

    arrival_s: float
    model: str
    input_tokens: int
    output_tokens: int
    tenant: str = ""


def generate(
    rates_per_s: Mapping[str, float], duration_s: float, arrivals: Arrivals, lengths: Lengths, seed: int
) -> list[Arrival]:
    """Requests over `duration_s` for every model at its own rate. The streams of the two generators are apart.

    More models at the end leave the arrivals of those before them as they were.
    """
    if seed < 0:
        raise InvalidArgument(f"a seed is at least 0, not {seed}")
    for model, rate in rates_per_s.items():
        _check_positive(f"the rate of model {model}", rate)
    _check_positive("the duration", duration_s)
    when, what = (np.random.default_rng([seed, stream]) for stream in range(2))
    times = [
        (time_s, model) for model, rate in rates_per_s.items() for time_s in arrivals.times_s(rate, duration_s, when)
    ]
    return [
        Arrival(time_s, model, inputs, outputs)
        for (time_s, model), (inputs, outputs) in zip(sorted(times), lengths.draw(len(times), what), strict=True)
    ]


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgument(f"{what} must be positive, not {value}")


def read(path: Path) -> list[Arrival]:
    """A CSV of `arrival_seconds,model,input_tokens,output_tokens`. Raises InvalidArgument with the line number."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != HEADER:
            raise InvalidArgument(f"{path}, line 1: the header must be {','.join(HEADER)}")
        arrivals = [_arrival(path, rows.line_num, row) for row in rows]
    if not arrivals:
        raise InvalidArgument(f"{path} holds no requests")
    return sorted(arrivals, key=lambda arrival: arrival.arrival_s)


def _arrival(path: Path, line: int, row: list[str]) -> Arrival:
    try:
        time_s, model, inputs, outputs = row
        arrival = Arrival(float(time_s), model, int(inputs), int(outputs))
    except ValueError:
        raise InvalidArgument(f"{path}, line {line}: {','.join(row)!r} is not {','.join(HEADER)}") from None
    if not (math.isfinite(arrival.arrival_s) and arrival.arrival_s >= 0):
        raise InvalidArgument(f"{path}, line {line}: arrival_seconds must be at least 0, not {time_s}")
    if arrival.input_tokens < 1 or arrival.output_tokens < 1:
        raise InvalidArgument(f"{path}, line {line}: a request has at least one token in and one out")
    return arrival
