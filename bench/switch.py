"""What a switch costs: `python -m bench.switch`.

Two models of one configuration, random weights, take turns on a device that holds one of them; both are in the host
cache. A switch is everything from the decision until the model can compute: evict the other, start the copy, be woken
by its end, bind the parameters. It is held against one plain `copy_` of the same bytes into the same buffer, measured
alternately with it on the same mapped, pre-faulted pages. Printed are medians.
"""

import argparse
import json
import select
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import transformers

from hekaton.engine.build import build
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image

NAMES = ("first", "second")
TMPFS = Path("/dev/shm")
MIB = 1 << 20
EMBEDDING_MIB, LAYER_MIB = 54, 6.75
"""Of a Llama of the shape below, in bfloat16."""
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
KV_BYTES = 16 * MIB
WARMUP_ROUNDS = 2
WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    device: str
    weight_bytes: int
    rounds: int
    switch_ms: float
    copy_ms: float
    bind_ms: float
    """Part of the switch: the module tree takes the other model's parameters."""
    switch_over_copy: float


def prepare(directory: Path, megabytes: int) -> dict[str, Image]:
    """Images of two Llama models of about so many MiB."""
    layers = max(1, round((megabytes - EMBEDDING_MIB) / LAYER_MIB))
    images = {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(num_hidden_layers=layers, **SHAPE)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory / name)
        prepared = build(str(directory / name), "", directory, lambda done, total: None)
        path = directory / f"{prepared.spec.digest}.img"
        images[name] = Image(str(path), prepared.spec.weight_bytes, prepared.tensors, prepared.config_json)
    return images


def switch(engine: TransformersEngine, model: str, other: str) -> float:
    """Seconds of the bind alone, the last part of the switch."""
    engine.evict(other)
    if not engine.begin_load(model):
        raise RuntimeError("an empty device has no room")
    while model in engine.loading():
        select.select([engine.fileno()], [], [], WAIT_S)
        engine.finished_loads()
    started_s = time.perf_counter()
    engine.bind(model)
    return time.perf_counter() - started_s


def timed(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def measure(images: dict[str, Image], rounds: int) -> Report:
    nbytes = images[NAMES[0]].nbytes
    engine = TransformersEngine("cpu", nbytes + KV_BYTES)
    sources = {}
    for name, image in images.items():
        engine.add_model(name, _spec(image), "")
        engine.provide_image(name, image)
        sources[name] = torch.from_file(image.path, shared=True, size=nbytes, dtype=torch.uint8)
    switches, binds, copies = [], [], []
    for round_ in range(WARMUP_ROUNDS + rounds):
        model, other = NAMES[round_ % 2], NAMES[1 - round_ % 2]
        copy_s = timed(lambda model=model: engine._buffer[:nbytes].copy_(sources[model]))
        started_s = time.perf_counter()
        bind_s = switch(engine, model, other)
        switch_s = time.perf_counter() - started_s
        if not torch.equal(engine._buffer[:nbytes], sources[model]):
            raise RuntimeError("the device does not hold what the image holds")
        if round_ >= WARMUP_ROUNDS:
            switches.append(switch_s)
            binds.append(bind_s)
            copies.append(copy_s)
    engine.close()
    switch_s, copy_s = median(switches), median(copies)
    return Report(
        "cpu", nbytes, rounds, 1e3 * switch_s, 1e3 * copy_s, 1e3 * median(binds), round(switch_s / copy_s, 3)
    )
