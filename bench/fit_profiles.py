"""Fits `hekaton.engine.profiles.FITS` anew: `python -m bench.fit_profiles`.

Prints the coefficients of every device and class, and how far the measured times are from them: median and largest
relative error of prefill and of decode step. bench/data/NOTICE says where the measured times come from.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hekaton.engine.profiles import FITS, Fit

DATA = Path(__file__).parent / "data" / "execution_profiles.csv"
BASE_DEVICE = "h800"
"""Its slope over context stands in where noise made one negative."""
Key = tuple[str, str]
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of one device and class."""

    requests: Vector
    tokens: Vector
    """Of all requests together."""
    prefill_s: Vector
    step_s: Vector


@dataclass(frozen=True, slots=True)
class Fitted:
    fit: Fit
    prefill_errors: Vector
    step_errors: Vector
    """Relative, of every row."""
    is_borrowed: bool
    """Whether the slope over context is that of BASE_DEVICE."""


def read(path: Path = DATA) -> dict[Key, Measured]:
    """By device and class."""
    rows: dict[Key, list[tuple[float, ...]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            requests, tokens = float(row["batch_size"]), float(row["input_tokens"])
            times = (float(row["prefill_seconds"]), float(row["decode_step_seconds"]))
            rows[row["device"], row["class"]].append((requests, requests * tokens, *times))
    return {key: Measured(*np.array(own).T) for key, own in rows.items()}


def fit_all(measured: Mapping[Key, Measured]) -> dict[Key, Fitted]:
    """In the order of FITS; BASE_DEVICE first, as others may lean on it."""
    base = {name: _fit(rows, None) for (device, name), rows in measured.items() if device == BASE_DEVICE}
    return {key: base[key[1]] if key[0] == BASE_DEVICE else _fit(measured[key], base[key[1]].fit) for key in FITS}


def _fit(rows: Measured, base: Fit | None) -> Fitted:
    ones = np.ones_like(rows.tokens)
    prefill = _solve([ones, rows.tokens], rows.prefill_s)
    step = _solve([ones, rows.requests, rows.tokens], rows.step_s)
    borrowed = base is not None and bool(step[2] < 0)
    if base is not None and borrowed:
        per_context = base.step_ns_per_context_token * 1e-9 * step[0] / (base.step_base_ms * 1e-3)
        step_base, per_request = _solve([ones, rows.requests], rows.step_s, per_context * rows.tokens)
        step = np.array([step_base, per_request, per_context])
    return Fitted(
        Fit(prefill[0] * 1e3, prefill[1] * 1e6, step[0] * 1e3, step[1] * 1e6, step[2] * 1e9),
        np.abs(prefill[0] + prefill[1] * rows.tokens - rows.prefill_s) / rows.prefill_s,
        np.abs(step[0] + step[1] * rows.requests + step[2] * rows.tokens - rows.step_s) / rows.step_s,
        borrowed,
    )


def _solve(columns: list[Vector], target: Vector, known: Vector | float = 0.0) -> Vector:
    """Least squares of the relative error, where a part of the target is known."""
    solution = np.linalg.lstsq(np.column_stack(columns) / target[:, None], (target - known) / target)[0]
    return np.asarray(solution, dtype=np.float64)


def _errors(errors: Vector) -> str:
    return f"{np.median(errors):.0%} / {errors.max():.0%}"


def main() -> None:
    names = ("prefill ms", "us/token", "step ms", "us/request", "ns/context")
    table = Table("device", "class", *names, "prefill error", "step error", title="relative errors: median / largest")
    for (device, name), fitted in fit_all(read()).items():
        values = [f"{value:.4g}" for value in astuple(fitted.fit)[: len(names)]]
        values[-1] += " *" * fitted.is_borrowed
        table.add_row(device, name, *values, _errors(fitted.prefill_errors), _errors(fitted.step_errors))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
