"""What a JSON schema costs a decode step: `python -m bench.grammar [--json] [--rounds N] [--dtype NAME]`.

SmolLM2-135M with its own tokenizer, as `hekaton models fetch-demo` leaves it, one thread. Requests with a schema and as
many without decode alternately, at the same positions, each feeding what it has chosen. `greedy_b1`, `greedy_b8`,
`sampled_b1` and `sampled_b8` are steps with a schema ÷ steps without, medians, of one and of eight requests;
`mask_ms` is what finding the allowed tokens of one request takes of it. `first_ms` is what the first request with a
schema costs its model once, and `schema_ms` what each further schema does.

Times are the process's processor time: on an idle machine that of its one thread, on a shared one without what others
take.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench.machine import cpu_name
from bench.weights import SHARED_MEMORY, engine_of, images_of, load
from hekaton.cli.demo_models import NAMES, default_directory
from hekaton.engine.grammar import Constraint, Vocabulary
from hekaton.engine.image import read_prepared
from hekaton.engine.interface import StepItem
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec, Sampling
from hekaton.jsonschema import grammar_of

T = TypeVar("T")
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8)
PROMPT_TOKENS = 128
STEPS = 40
"""Of a round; its first one compiles and does not count."""
KV_ROOM_BYTES = 1 << 30
SCHEMA = json.dumps(
    {
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "height": {"type": "number"},
                "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
                "home": {"type": ["object", "null"], "properties": {"city": {"type": "string", "maxLength": 20}}},
            },
            "required": ["name", "age", "height", "tags", "home"],
            "additionalProperties": False,
        },
    }
)
"""Of texts, numbers, choices and nothing, and never at its end within a round."""
FREE = Sampling(max_tokens=STEPS + 1, seed=1)
KINDS = {"greedy": FREE, "sampled": replace(FREE, temperature=0.8)}


@dataclass(frozen=True, slots=True)
class Result:
    dtype: str
    step_ms_b1: float
    """Greedy, without a schema."""
    step_ms_b8: float
    greedy_b1: float
    greedy_b8: float
    sampled_b1: float
    sampled_b8: float
    mask_ms: float
    first_ms: float
    schema_ms: float


class Rows:
    """Requests that decode together: they begin with the same prompt, and go their own ways if they sample."""

    def __init__(self, engine: TransformersEngine, prefix: str, batch: int, sampling: Sampling) -> None:
        self._engine = engine
        self._ids = [f"{prefix}{index}" for index in range(batch)]
        self._samplings = [replace(sampling, seed=index + 1) for index in range(batch)]
        self._produced: list[list[int]] = [[] for _ in range(batch)]
        self._feed([tuple(range(5, 5 + PROMPT_TOKENS))] * batch, 0)

    def step(self) -> float:
        """Seconds of a decode step."""
        start = PROMPT_TOKENS + len(self._produced[0]) - 1
        return _cpu_s(lambda: self._feed([(produced[-1],) for produced in self._produced], start))[0]

    def drop(self) -> None:
        for request_id in self._ids:
            self._engine.drop_kv(request_id)

    def _feed(self, tokens: Sequence[tuple[int, ...]], start: int) -> None:
        items = []
        for request_id, sampling, fed, produced in zip(self._ids, self._samplings, tokens, self._produced, strict=True):
            if not self._engine.grow_kv(request_id, "a", start + len(fed)):
                raise RuntimeError("there is no room for the KV of this bench")
            items.append(StepItem(request_id, fed, start, sampling, len(produced), (), tuple(produced)))
        for produced, chosen in zip(self._produced, self._engine.step("a", items), strict=True):
            if chosen is not None:
                produced.append(chosen.token_id)


def measure(checkpoint: Path, dtype: str, rounds: int, directory: Path) -> Result:
    spec, images = images_of(checkpoint, dtype, directory)
    engine = engine_of(spec, {"a": images["a"]}, spec.weight_bytes + KV_ROOM_BYTES)
    try:
        load(engine, "a")
        ratios: dict[tuple[str, int], float] = {}
        free_s: dict[int, float] = {}
        for kind, sampling in KINDS.items():
            for batch in BATCHES:
                free, bound = _alternate(engine, batch, sampling, rounds)
                ratios[kind, batch] = bound / free
                free_s.setdefault(batch, free)
    finally:
        engine.close()
    first_s, schema_s, mask_s = _masks(spec, images["a"])
    return Result(
        dtype=dtype,
        step_ms_b1=free_s[1] * 1e3,
        step_ms_b8=free_s[8] * 1e3,
        greedy_b1=ratios["greedy", 1],
        greedy_b8=ratios["greedy", 8],
        sampled_b1=ratios["sampled", 1],
        sampled_b8=ratios["sampled", 8],
        mask_ms=mask_s * 1e3,
        first_ms=first_s * 1e3,
        schema_ms=schema_s * 1e3,
    )


def _alternate(engine: TransformersEngine, batch: int, sampling: Sampling, rounds: int) -> tuple[float, float]:
    """Median seconds of a step without and with a schema."""
    free_s: list[float] = []
    bound_s: list[float] = []
    for _ in range(rounds):
        free = Rows(engine, "free", batch, sampling)
        bound = Rows(engine, "bound", batch, replace(sampling, json_schema=SCHEMA))
        for index in range(STEPS):
            pair = [(free, free_s), (bound, bound_s)]
            for rows, times in pair if index % 2 else reversed(pair):
                taken = rows.step()
                if index:
                    times.append(taken)
        free.drop()
        bound.drop()
    return median(free_s), median(bound_s)


def _masks(spec: ModelSpec, image: Image) -> tuple[float, float, float]:
    """Seconds of a vocabulary, of a schema, and of finding out which tokens may come next, a median."""
    text = read_prepared(Path(image.path).with_suffix(".json")).tokenizer_json
    first_s, vocabulary = _cpu_s(lambda: Vocabulary(text, spec.vocab_size, spec.eos_token_ids))
    schema_s, constraint = _cpu_s(lambda: Constraint("r", grammar_of(SCHEMA), vocabulary))
    produced: list[int] = []
    times = []
    for _ in range(STEPS):
        taken, forbidden = _cpu_s(lambda: constraint.forbidden(produced))
        times.append(taken)
        produced.append(int((~forbidden).nonzero()[0]))
    return first_s, schema_s, median(times)


def _cpu_s(action: Callable[[], T]) -> tuple[float, T]:
    started_s = time.process_time()
    done = action()
    return time.process_time() - started_s, done


def _table(results: Sequence[Result]) -> Table:
    table = Table(title=f"A decode step of {NAMES[0]} with a JSON schema ÷ without, on cpu ({cpu_name()}, one thread)")
    table.add_column("")
    for one in results:
        table.add_column(one.dtype, justify="right")
    for name in list(asdict(results[0]))[1:]:
        table.add_row(name, *(f"{getattr(one, name):.3f}" for one in results))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.grammar", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="both if not given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checkpoint = default_directory() / NAMES[0]
    if not checkpoint.is_dir():
        raise SystemExit("the model is not there: hekaton models fetch-demo")
    results = []
    for dtype in args.dtype or DTYPES:
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
            results.append(measure(checkpoint, dtype, args.rounds, Path(name)))
    if args.json:
        print(
            json.dumps({"device": "cpu", "cpu": cpu_name(), "model": NAMES[0], "results": list(map(asdict, results))})
        )
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    main()
