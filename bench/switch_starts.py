"""A switch beside what it replaces, a start from the checkpoint; and a start whose copy and prefill overlap."""

import os
import select
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers

from bench.switch_copy import GREEDY, SPARE_BYTES, alternate, timed_ms
from bench.weights import begin_load, engine_of, load
from hekaton.engine.interface import StepItem
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec

NAIVE_STARTS = 3
PREFILL_TOKENS = 128
NAIVE = """
import sys, torch, transformers
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2])
model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1, do_sample=False)
"""


@dataclass(frozen=True, slots=True)
class Started:
    """Medians."""

    naive_start_ms: float
    switch_over_naive_start: float
    warm_load_ms: float
    switch_over_warm_load: float
    pipelined_start_ms: float
    """Load and prefill, overlapped; the copy takes as long as the prefill."""
    pipelined_start_over_serial: float
    prefill_over_copy: float


def measure_starts(
    checkpoint: Path, spec: ModelSpec, images: dict[str, Image], switch_ms: float, rounds: int
) -> Started:
    naive_ms = median(timed_ms(partial(_naive_start, checkpoint, spec.dtype)) for _ in range(NAIVE_STARTS))
    warm_ms = median(alternate(rounds, partial(_warm_load, checkpoint, spec.dtype))[0])
    bytes_per_s = int(spec.weight_bytes / (_prefill_ms(spec, images, rounds) / 1e3))
    with closing(engine_of(spec, images, spec.weight_bytes + SPARE_BYTES, bytes_per_s)) as engine:
        if not engine.grow_kv("r", "a", PREFILL_TOKENS):
            raise RuntimeError("KV finds no room on the device")
        both = alternate(rounds, partial(_pipelined, engine), partial(_serial, engine))
        copies = [_copy_ms(engine) for _ in range(3)]
        prefills = [timed_ms(partial(_prefill, engine)) for _ in range(rounds)]
    pipelined_ms, serial_ms = (median(times) for times in both)
    return Started(
        naive_ms,
        switch_ms / naive_ms,
        warm_ms,
        switch_ms / warm_ms,
        pipelined_ms,
        pipelined_ms / serial_ms,
        median(prefills) / median(copies),
    )


def _naive_start(checkpoint: Path, dtype: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", NAIVE, str(checkpoint), dtype], check=True, env=environment)


def _warm_load(checkpoint: Path, dtype: str) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))


def _prefill_ms(spec: ModelSpec, images: dict[str, Image], rounds: int) -> float:
    with closing(engine_of(spec, images, spec.weight_bytes + SPARE_BYTES)) as engine:
        if not engine.grow_kv("r", "a", PREFILL_TOKENS):
            raise RuntimeError("KV finds no room on the device")
        load(engine, "a")
        _prefill(engine)
        return median(timed_ms(partial(_prefill, engine)) for _ in range(rounds))


def _prefill(engine: TransformersEngine) -> None:
    engine.step("a", [StepItem("r", tuple(range(PREFILL_TOKENS)), 0, GREEDY, 0)])


def _pipelined(engine: TransformersEngine) -> None:
    """As the turn loop does it where nothing else has work."""
    engine.evict("a")
    begin_load(engine, "a")
    while "a" not in engine.startable():
        select.select([engine.fileno()], [], [])
        engine.finished_loads()
    _prefill(engine)


def _serial(engine: TransformersEngine) -> None:
    engine.evict("a")
    load(engine, "a")
    _prefill(engine)


def _copy_ms(engine: TransformersEngine) -> float:
    engine.evict("a")
    started_s = time.perf_counter()
    load(engine, "a")
    return (time.perf_counter() - started_s) * 1e3
