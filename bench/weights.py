"""Checkpoints, images and engines of the benches."""

import select
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from hekaton.engine.build import build
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec

SMALL: dict[str, object] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M."""
LARGE: dict[str, object] = {
    **SMALL,
    "hidden_size": 1344,
    "intermediate_size": 3584,
    "num_hidden_layers": 26,
    "num_attention_heads": 21,
    "num_key_value_heads": 7,
}
"""About 560 million parameters."""
SHARED_MEMORY = Path("/dev/shm")


def write_checkpoint(directory: Path, shape: dict[str, object] = SMALL, dtype: str = "float32", seed: int = 1) -> Path:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model("llama", **shape)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
    return directory


def images_of(checkpoint: Path, dtype: str, directory: Path) -> tuple[ModelSpec, dict[str, Image]]:
    """Two images, `a` and `b`, of one checkpoint, each in a file of its own."""
    prepared = build(str(checkpoint), dtype, directory, lambda done, total: None)
    first = directory / f"{prepared.spec.digest}.img"
    second = first.with_suffix(".copy")
    shutil.copy(first, second)
    image = Image(str(first), prepared.spec.weight_bytes, prepared.tensors, prepared.config_json)
    return prepared.spec, {"a": image, "b": replace(image, path=str(second))}


def engine_of(
    spec: ModelSpec, images: dict[str, Image], device_memory_bytes: int, copy_bytes_per_s: int = 0
) -> TransformersEngine:
    engine = TransformersEngine("cpu", device_memory_bytes, copy_bytes_per_s=copy_bytes_per_s)
    for name, image in images.items():
        engine.add_model(name, spec, "")
        engine.provide_image(name, image)
    return engine


def begin_load(engine: TransformersEngine, model: str) -> None:
    if not engine.begin_load(model):
        raise RuntimeError(f"model {model} finds no room on the device")


def finish_load(engine: TransformersEngine, model: str) -> None:
    """Returns when the model is resident."""
    while model in engine.loading():
        select.select([engine.fileno()], [], [])
        engine.finished_loads()


def load(engine: TransformersEngine, model: str) -> None:
    begin_load(engine, model)
    finish_load(engine, model)
