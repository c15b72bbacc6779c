"""Random switches for a long time: what stays behind in memory, in the books, and in the file system."""

import os
import random
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.weights import SHARED_MEMORY, begin_load, finish_load, write_checkpoint
from hekaton.engine.build import build
from hekaton.engine.interface import Sampled, StepItem
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec, Sampling

RESIDENT = 3
"""Models that the device holds."""
WARM_UP, LOOK = 0.2, 0.1
"""Shares of the switches: before memory is looked at, and over which it is. What a step needs comes and goes in it."""
SHAPES: tuple[dict[str, object], ...] = tuple(
    {
        "vocab_size": 1024,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for hidden in (192, 256)
)
GREEDY = Sampling(max_tokens=1, seed=1)
PROMPT = tuple(range(40))
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Drift:
    switches: int
    models: int
    resident: int
    drift: float
    """Of the process's resident bytes from after the warm-up to the end, images unmapped; a share, of two medians."""
    left_files: int
    """In shared memory."""
    left_descriptors: int
    same_tokens: bool
    """Every model gave the same token each time."""


@dataclass(frozen=True, slots=True)
class _Held:
    nbytes: int
    descriptors: int


def drift(switches: int, count: int = 8, seed: int = 1) -> Drift:
    """Raises AssertionError if the engine's books do not balance after any of them."""
    before = _shared_files()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        models = [_model(Path(name), index) for index in range(count)]
        largest = max(spec.weight_bytes for spec, _ in models)
        with closing(TransformersEngine("cpu", RESIDENT * largest + (8 << 20))) as engine:
            for index, (spec, _) in enumerate(models):
                engine.add_model(str(index), spec, "")
            tokens, first, last = _switch_about(engine, [image for _, image in models], switches, seed)
    return Drift(
        switches,
        count,
        RESIDENT,
        last.nbytes / first.nbytes - 1,
        len(_shared_files() - before),
        last.descriptors - first.descriptors,
        all(len(found) == 1 for found in tokens.values()),
    )


def _switch_about(
    engine: TransformersEngine, images: list[Image], switches: int, seed: int
) -> tuple[dict[str, set[Sampled | None]], _Held, _Held]:
    rng = random.Random(seed)
    tokens: dict[str, set[Sampled | None]] = {}
    held: list[_Held] = []
    for _ in range(switches):
        model = str(rng.randrange(len(images)))
        _switch(engine, model, images[int(model)], rng)
        if not engine.grow_kv("r", model, len(PROMPT)):
            raise RuntimeError("KV finds no room on the device")
        tokens.setdefault(model, set()).update(engine.step(model, [StepItem("r", PROMPT, 0, GREEDY, 0)]))
        engine.drop_kv("r")
        engine.check_integrity()
        held.append(_held())
    warm, look = int(switches * WARM_UP), int(switches * LOOK)
    return tokens, _median(held[warm : warm + look]), _median(held[-look:])


def _median(held: Sequence[_Held]) -> _Held:
    return _Held(int(median(one.nbytes for one in held)), held[-1].descriptors)


def _switch(engine: TransformersEngine, model: str, image: Image, rng: random.Random) -> None:
    """To a model that is resident or not, at the expense of any other; now and then a load is broken off first."""
    if model in engine.resident():
        return
    engine.provide_image(model, image)
    while not engine.begin_load(model):
        engine.evict(rng.choice(sorted(engine.resident())))
    if rng.random() < 0.2:
        engine.evict(model)
        begin_load(engine, model)
    finish_load(engine, model)
    engine.provide_image(model, None)


def _model(directory: Path, index: int) -> tuple[ModelSpec, Image]:
    checkpoint = write_checkpoint(directory / str(index), SHAPES[index % len(SHAPES)], seed=index)
    prepared = build(str(checkpoint), "float32", directory, lambda done, total: None)
    path = str(directory / f"{prepared.spec.digest}.img")
    return prepared.spec, Image(path, prepared.spec.weight_bytes, prepared.tensors, prepared.config_json)


def _held() -> _Held:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return _Held(pages * PAGE_BYTES, len(os.listdir("/proc/self/fd")))


def _shared_files() -> set[str]:
    return set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()
