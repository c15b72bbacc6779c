"""What a switch costs beside a plain copy: `python -m bench.switch [--json] [--rounds N]`.

A random-weight Llama of the 135M class, two images of it, and a device that holds one. In one run, alternately: a
switch to a model in the host cache (evict the other, copy, bind, until it can step), and a plain `copy_` of the same
bytes from the same image to the same place. Each goes first in every other round, as the second finds warm caches.
Printed are medians.
"""

import argparse
import json
import select
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.machine import cpu_name
from hekaton.engine.build import build
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
DTYPES = ("bfloat16", "float32")
SPARE_BYTES = 16 << 20
"""What the device has beside one model: too little for two."""
SHARED_MEMORY = Path("/dev/shm")
PAIR = (("a", "b"), ("b", "a"))
WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one dtype."""

    dtype: str
    weight_bytes: int
    switch_ms: float
    copy_ms: float
    switch_over_copy: float
    resident_switch_ms: float
    """Between two models of one configuration that are both on the device: no copy, only binding."""


def measure(checkpoint: Path, dtype: str, rounds: int, directory: Path) -> Result:
    """Puts two images of the checkpoint into `directory` and switches between them."""
    spec, images = images_of(checkpoint, dtype, directory)
    with closing(_engine(spec, images, spec.weight_bytes + SPARE_BYTES)) as engine:
        switches, copies = _alternate(engine, images, rounds)
    with closing(_engine(spec, images, 2 * spec.weight_bytes)) as engine:
        binds = _binds(engine, rounds)
    switch_ms, copy_ms = median(switches), median(copies)
    return Result(dtype, spec.weight_bytes, switch_ms, copy_ms, switch_ms / copy_ms, median(binds))


def write_checkpoint(directory: Path) -> Path:
    """Random weights, in float32."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("llama", **SHAPE)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def images_of(checkpoint: Path, dtype: str, directory: Path) -> tuple[ModelSpec, dict[str, Image]]:
    prepared = build(str(checkpoint), dtype, directory, lambda done, total: None)
    first = directory / f"{prepared.spec.digest}.img"
    second = first.with_suffix(".copy")
    shutil.copy(first, second)
    image = Image(str(first), prepared.spec.weight_bytes, prepared.tensors, prepared.config_json)
    return prepared.spec, {"a": image, "b": replace(image, path=str(second))}


def _engine(spec: ModelSpec, images: dict[str, Image], device_memory_bytes: int) -> TransformersEngine:
    engine = TransformersEngine("cpu", device_memory_bytes)
    for name, image in images.items():
        engine.add_model(name, spec, "")
        engine.provide_image(name, image)
    return engine


def _alternate(engine: TransformersEngine, images: dict[str, Image], rounds: int) -> tuple[list[float], list[float]]:
    """Times in ms of switches and of plain copies."""
    sources = {name: torch.from_numpy(np.memmap(image.path, np.uint8, "c")) for name, image in images.items()}
    # Where the weights go: the lowest fit on an empty device.
    place = engine._buffer[: images["a"].nbytes]
    switches: list[float] = []
    copies: list[float] = []
    for round_ in range(rounds + WARM_UP_ROUNDS):
        for model, other in PAIR:
            pair = [(switches, partial(_switch, engine, model, other)), (copies, partial(_copy, sources[model], place))]
            for times, action in pair if round_ % 2 else reversed(pair):
                times.append(_timed_ms(action))
            if not torch.equal(place, sources[model]):
                raise RuntimeError("the device does not hold what the image holds")
    return switches[2 * WARM_UP_ROUNDS :], copies[2 * WARM_UP_ROUNDS :]


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def _switch(engine: TransformersEngine, model: str, other: str) -> None:
    engine.evict(other)
    _load(engine, model)
    _bind(engine, model)


def _load(engine: TransformersEngine, model: str) -> None:
    if not engine.begin_load(model):
        raise RuntimeError(f"model {model} finds no room on the device")
    while model in engine.loading():
        select.select([engine.fileno()], [], [])
        engine.finished_loads()


def _bind(engine: TransformersEngine, model: str) -> None:
    """What `step` does first when another model ran before."""
    known = engine._models[model]
    if known.skeleton is None:
        raise RuntimeError(f"model {model} has no image")
    known.skeleton.bind(model, known.parameters)


def _binds(engine: TransformersEngine, rounds: int) -> list[float]:
    for name, _ in PAIR:
        _load(engine, name)
    return [_timed_ms(partial(_bind, engine, name)) for _ in range(rounds) for name, _ in PAIR]


def _timed_ms(action: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    action()
    return (time.perf_counter() - started_s) * 1e3


def _table(results: list[Result]) -> Table:
    table = Table(title=f"Switching on cpu ({cpu_name()}, one thread)")
    table.add_column("dtype")
    for name in ("weights MiB", "switch ms", "plain copy ms", "switch / copy", "resident switch ms"):
        table.add_column(name, justify="right")
    for one in results:
        times = (f"{one.switch_ms:.1f}", f"{one.copy_ms:.1f}", f"{one.switch_over_copy:.3f}")
        table.add_row(one.dtype, f"{one.weight_bytes / 2**20:.0f}", *times, f"{one.resident_switch_ms:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.switch", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=10, help="switches in each direction")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        checkpoint = write_checkpoint(Path(name) / "checkpoint")
        results = [measure(checkpoint, dtype, args.rounds, Path(name)) for dtype in DTYPES]
    if args.json:
        print(json.dumps({"device": "cpu", "cpu": cpu_name(), "results": [asdict(result) for result in results]}))
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    main()
