"""What a switch costs: `python -m bench.switch [--json] [--rounds N] [--model DIR]`, or `--drift`.

Every ratio is of two things measured alternately in one run, the one first in every other round; medians.

- `switch_over_copy`: a switch to a model in the host cache (evict the other, copy, bind, until it can step) ÷ a plain
  `copy_` of the same bytes from the same image to the same place; for the 135M class and for one of 500M and more.
- `resident_switch_ms`: the switch between two models that are both on the device, and what it is of a decode step.
- `prefetched_exposed_over_copy`: what is left of a switch whose copy went beside another model's steps ÷ the copy.
- `switch_over_warm_load`: ÷ `from_pretrained` in this process, the file in the page cache.
- `switch_over_naive_start`: ÷ a new process to its first token, the file in the page cache.
- `pipelined_start_over_serial`: load and prefill of a model whose steps begin with its first weights ÷ the same where
  they begin with its last. The bus is emulated: its bandwidth is such that the copy takes as long as the prefill.

`--drift` makes 1,000 random switches among eight models instead (`bench.switch_drift`).
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench.machine import cpu_name
from bench.switch_copy import Copied, measure_copy
from bench.switch_drift import Drift, drift
from bench.switch_starts import Started, measure_starts
from bench.weights import LARGE, SHARED_MEMORY, SMALL, images_of, write_checkpoint
from hekaton.cli.demo_models import NAMES, default_directory

BOUNDS = {
    "switch_over_copy": 1.10,
    "resident_switch_ms": 2.0,
    "prefetched_exposed_over_copy": 0.05,
    "switch_over_naive_start": 1 / 60,
    "pipelined_start_over_serial": 0.75,
}


@dataclass(frozen=True, slots=True)
class Result:
    """One model in one dtype."""

    model: str
    dtype: str
    copied: Copied
    started: Started | None
    """None for the large one: a process that starts it tells nothing more."""

    def flat(self) -> dict[str, object]:
        started = asdict(self.started) if self.started else {}
        return {"model": self.model, "dtype": self.dtype, **asdict(self.copied), **started}


def run(rounds: int, model: Path | None) -> Iterator[Result]:
    """Every model, largest last."""
    with _workplace() as directory:
        real = model or default_directory() / NAMES[0]
        name = real.name if real.is_dir() else "135M class, random weights"
        small = real if real.is_dir() else write_checkpoint(directory / "small", SMALL, "bfloat16")
        for dtype in ("bfloat16", "float32"):
            spec, images = images_of(small, dtype, directory)
            copied = measure_copy(spec, images, rounds)
            yield Result(name, dtype, copied, measure_starts(small, spec, images, copied.switch_ms, rounds))
    with _workplace() as directory:
        large = write_checkpoint(directory / "large", LARGE, "bfloat16")
        spec, images = images_of(large, "bfloat16", directory)
        yield Result("560M, random weights", "bfloat16", measure_copy(spec, images, rounds), None)


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        yield Path(name)


def _table(results: list[Result]) -> Table:
    table = Table(title=f"Switching on cpu ({cpu_name()}, one thread)")
    table.add_column("")
    flat = [result.flat() for result in results]
    for one in flat:
        table.add_column(f"{one['model']}\n{one['dtype']}", justify="right")
    table.add_column("bound", justify="right")
    for name in (key for key in flat[0] if key not in ("model", "dtype")):
        cells = [_number(one[name]) if name in one else "" for one in flat]
        table.add_row(name, *cells, _number(BOUNDS[name]) if name in BOUNDS else "")
    return table


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _headline(results: list[Result]) -> dict[str, object]:
    """Of the small model in bfloat16, by name; the switch of the large one beside it."""
    return {**results[0].flat(), "switch_over_copy_large": results[-1].copied.switch_over_copy}


def _print_drift(found: Drift, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"device": "cpu", "cpu": cpu_name(), **asdict(found)}))
    else:
        Console().print(
            f"{found.switches} switches among {found.models} models, {found.resident} on the device at a time: "
            f"resident memory {found.drift:+.2%}, left: {found.left_files} files, {found.left_descriptors} descriptors"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.switch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=10, help="of each measurement")
    parser.add_argument(
        "--model", type=Path, help="checkpoint of the 135M class; that of `hekaton demo` if it is there"
    )
    parser.add_argument("--drift", action="store_true", help="1,000 random switches among eight models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if args.drift:
        _print_drift(drift(1_000), args.json)
        return
    results = list(run(args.rounds, args.model))
    if args.json:
        flat = [result.flat() for result in results]
        print(json.dumps({"device": "cpu", "cpu": cpu_name(), **_headline(results), "results": flat}))
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    main()
