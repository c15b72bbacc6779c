"""What a step costs beside transformers': `python -m bench.decode [--json] [--rounds N] [--dtype NAME]`.

SmolLM2-135M as `hekaton models fetch-demo` leaves it, or random weights of its shape; one thread; every ratio above 1
is in our favour. Of two things measured alternately in one run:

`decode_over_generate_b1`, `_b8`, `_b32`: steps from context 256 on, beside `generate` with its dynamic cache.
`ragged_over_static_batching`, `decode_over_continuous_batching`: tokens asked for by the requests of one trace, all
there at the beginning, of many lengths, eight at a time: the turn loop, beside `generate` with padding in batches of
eight, and beside transformers' own continuous batching. Prompts included.
`prefill_over_forward`: a prompt of 512 tokens, beside one plain forward with `logits_to_keep=1`.

Times are the process's processor time: on an idle machine that of its one thread, on a shared one without what others
take. Printed are ratios of medians. float32 is the bound where a processor has no bfloat16 arithmetic.
"""

import argparse
import json
import random
import select
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.machine import cpu_name
from bench.weights import SHARED_MEMORY, images_of, write_checkpoint
from hekaton.cli.demo_models import NAMES, default_directory
from hekaton.engine.interface import StepItem
from hekaton.engine.messages import AddModel, Ended, Event, ImageReady, Submit
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.engine.turns import TurnLoop
from hekaton.facts import Image, ModelSpec, Sampling, Slo
from hekaton.policy.live import live_turns
from hekaton.policy.types import Role

DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8, 32)
CONTEXT_TOKENS, STEPS = 256, 8
PROMPT_TOKENS = 512
MAX_BATCH = 8
REQUESTS = 16
TOKENS = (5, 250)
"""Ids that every vocabulary has."""
PROMPTS, OUTPUTS = (16, 128), (4, 48)
"""Least and most tokens of a request of the trace."""
KV_ROOM_BYTES = 1 << 30
GREEDY = Sampling(max_tokens=1, seed=1)
TIMEOUT_S = 60
Trace = Sequence[tuple[tuple[int, ...], int]]
"""Prompt, and tokens to produce."""


@dataclass(frozen=True, slots=True)
class Result:
    dtype: str
    step_ms_b1: float
    step_ms_b8: float
    step_ms_b32: float
    decode_over_generate_b1: float
    decode_over_generate_b8: float
    decode_over_generate_b32: float
    ragged_over_static_batching: float
    decode_over_continuous_batching: float
    prefill_over_forward: float


class Ours:
    """The engine, with one model on its device."""

    def __init__(self, spec: ModelSpec, image: Image) -> None:
        self.engine = TransformersEngine("cpu", spec.weight_bytes + KV_ROOM_BYTES)
        self._left: set[str] = set()
        """Requests of the turn loop that have not ended."""
        self._served = 0
        policy = live_turns("slack", {}, Role.ANY)
        self._loop = TurnLoop(self.engine, policy, self._emit, time.monotonic, "bench", MAX_BATCH)
        self._loop.handle(AddModel("a", spec, ""))
        self._loop.handle(ImageReady("a", image))
        self.engine.begin_load("a")
        while "a" in self.engine.loading():
            select.select([self.engine.fileno()], [], [])
            self.engine.finished_loads()

    def steps(self, batch: int) -> list[float]:
        """Decode steps; where the KV before them was zeroed, which takes as long to attend to."""
        times = [
            _cpu_s(partial(self._feed, batch, 1, CONTEXT_TOKENS + step if step else CONTEXT_TOKENS))
            for step in range(STEPS + 1)
        ]
        self._drop(batch)
        return times[1:]

    def prefill(self) -> list[float]:
        taken = _cpu_s(partial(self._feed, 1, PROMPT_TOKENS, 0))
        self._drop(1)
        return [taken]

    def serve(self, trace: Trace) -> None:
        """Through the turn loop."""
        self._served += 1
        self._left = {f"{self._served}/{index}" for index in range(len(trace))}
        for index, (prompt, count) in enumerate(trace):
            submit = Submit(
                f"{self._served}/{index}", 1, 0, "a", prompt, (), Sampling(max_tokens=count, seed=1), Slo(1e3, 1e3), 0.0
            )
            self._loop.handle(submit)
        while self._left:
            if not self._loop.run_once():
                select.select([self.engine.fileno()], [], [], 0.01)

    def _emit(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._left.remove(event.request_id)

    def _feed(self, batch: int, tokens: int, start: int) -> None:
        items = []
        for index in range(batch):
            if not self.engine.grow_kv(f"r{index}", "a", start + tokens):
                raise RuntimeError("there is no room for the KV of this bench")
            items.append(StepItem(f"r{index}", (TOKENS[0],) * tokens, start, GREEDY, 0))
        self.engine.step("a", items)

    def _drop(self, batch: int) -> None:
        for index in range(batch):
            self.engine.drop_kv(f"r{index}")


class Theirs:
    """The library's own ways, with the same weights."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        self._model.eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def steps(self, batch: int) -> list[float]:
        ids = torch.randint(*TOKENS, (batch, CONTEXT_TOKENS + 1))
        clock = _Clock()
        self._generate(
            ids, torch.ones_like(ids), STEPS + 1, past_key_values=self._cache(batch), stopping_criteria=[clock]
        )
        return [after - before for before, after in zip(clock.read_s, clock.read_s[1:], strict=False)]

    def prefill(self) -> list[float]:
        ids = torch.full((1, PROMPT_TOKENS), TOKENS[0])
        with torch.inference_mode():
            return [_cpu_s(partial(self._model, input_ids=ids, use_cache=False, logits_to_keep=1))]

    def static(self, trace: Trace) -> None:
        """As they come, eight at a time, padded on the left; a batch runs until its longest has ended."""
        for first in range(0, len(trace), MAX_BATCH):
            batch = trace[first : first + MAX_BATCH]
            width = max(len(prompt) for prompt, _ in batch)
            ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt, _ in batch])
            self._generate(ids, (ids != 0).long(), max(count for _, count in batch))

    def continuous(self, trace: Trace) -> None:
        # 64 places of 256 tokens are more than the trace ever needs.
        config = transformers.ContinuousBatchingConfig(
            num_blocks=64, max_batch_tokens=512, max_requests_per_batch=MAX_BATCH
        )
        with self._model.continuous_batching_context_manager(continuous_batching_config=config) as manager:
            for prompt, count in trace:
                manager.add_request(list(prompt), max_new_tokens=count)
            for _ in trace:
                result = manager.get_result(timeout=TIMEOUT_S)
                if result is None or result.error:
                    raise RuntimeError(f"transformers' continuous batching failed: {result and result.error}")

    def _generate(self, ids: Tensor, mask: Tensor, count: int, **options: object) -> None:
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, **options
            )

    def _cache(self, batch: int) -> Any:
        """A dynamic cache of zeros for the context."""
        config = self._model.config
        cache = transformers.DynamicCache(config=config)
        size = config.hidden_size // config.num_attention_heads
        for layer in range(config.num_hidden_layers):
            shape = (batch, config.num_key_value_heads, CONTEXT_TOKENS, size)
            cache.update(*(torch.zeros(shape, dtype=self._model.dtype) for _ in range(2)), layer)
        return cache


class _Clock:
    """Stops nothing; notes when each token was there."""

    def __init__(self) -> None:
        self.read_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: object) -> Tensor:
        self.read_s.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def measure(checkpoint: Path, dtype: str, rounds: int, directory: Path) -> Result:
    """`directory` is where the image goes."""
    spec, images = images_of(checkpoint, dtype, directory)
    ours, theirs = Ours(spec, images["a"]), Theirs(checkpoint, dtype)
    trace = make_trace()
    with closing(ours.engine):
        steps = [_alternate(rounds, partial(ours.steps, batch), partial(theirs.steps, batch)) for batch in BATCHES]
        prefill = _alternate(rounds, ours.prefill, theirs.prefill)
        serve, static, continuous = _alternate(
            max(rounds // 2, 1), *(partial(_once, way, trace) for way in (ours.serve, theirs.static, theirs.continuous))
        )
    (one, one_other), (eight, eight_other), (many, many_other) = steps
    return Result(
        dtype,
        one * 1e3,
        eight * 1e3,
        many * 1e3,
        one_other / one,
        eight_other / eight,
        many_other / many,
        static / serve,
        continuous / serve,
        prefill[1] / prefill[0],
    )


def make_trace() -> Trace:
    chance = random.Random(1)
    return [
        (tuple(chance.randrange(*TOKENS) for _ in range(chance.randint(*PROMPTS))), chance.randint(*OUTPUTS))
        for _ in range(REQUESTS)
    ]


def _alternate(rounds: int, *ways: Callable[[], list[float]]) -> list[float]:
    """Medians of each way in seconds. The first goes last in every other round, and one round warms up."""
    times: list[list[float]] = [[] for _ in ways]
    for round_ in range(rounds + 1):
        pairs = list(zip(times, ways, strict=True))
        for found, way in pairs if round_ % 2 else reversed(pairs):
            taken = way()
            if round_:
                found.extend(taken)
    return [median(found) for found in times]


def _once(way: Callable[[Trace], None], trace: Trace) -> list[float]:
    return [_cpu_s(partial(way, trace))]


def _cpu_s(action: Callable[[], object]) -> float:
    started_s = time.process_time()
    action()
    return time.process_time() - started_s


def _table(results: Sequence[Result], source: str) -> Table:
    table = Table(title=f"Steps of {source} on cpu ({cpu_name()}, one thread)")
    table.add_column("")
    for one in results:
        table.add_column(one.dtype, justify="right")
    for name in list(asdict(results[0]))[1:]:
        table.add_row(name, *(f"{getattr(one, name):.{1 if name.startswith('step') else 3}f}" for one in results))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="both if not given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        demo = default_directory() / NAMES[0]
        checkpoint = demo if demo.is_dir() else write_checkpoint(Path(name) / "checkpoint")
        source = NAMES[0] if demo.is_dir() else "random weights of its shape"
        results = [measure(checkpoint, dtype, args.rounds, Path(name)) for dtype in args.dtype or DTYPES]
    if args.json:
        found = [asdict(result) for result in results]
        print(json.dumps({"device": "cpu", "cpu": cpu_name(), "model": source, "results": found}))
    else:
        Console().print(_table(results, source))


if __name__ == "__main__":
    main()
