"""Real models on one device, through transformers and torch."""

import mmap
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hekaton.engine import attention
from hekaton.engine.copier import Copier, CopyJob
from hekaton.engine.device import Extent, Extents
from hekaton.engine.image import ALIGN_BYTES
from hekaton.engine.interface import LoadResult, StepItem
from hekaton.engine.kv import BLOCK_TOKENS, BlockShape, KvCache
from hekaton.engine.meter import Meter
from hekaton.engine.sampler import sample
from hekaton.engine.skeleton import Skeleton
from hekaton.errors import EngineFailed, InvalidCheckpoint, ModelTooLarge
from hekaton.facts import Image, ModelSpec
from hekaton.policy.types import ModelCosts

MAX_SLAB_BYTES = 16 << 20
SLABS_A_DEVICE = 32
"""No slab is larger than this part of the device."""


@dataclass(eq=False, slots=True)
class _Model:
    """A known model and what of it is where."""

    name: str
    spec: ModelSpec
    meter: Meter
    image: Image | None = None
    source: Tensor | None = None
    """The mapped image, flat bytes."""
    skeleton: Skeleton | None = None
    shape: BlockShape | None = None
    extent: Extent | None = None
    job: CopyJob | None = None
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


class TransformersEngine:
    """The `Engine` protocol on a CPU or CUDA device. One thread calls everything."""

    def __init__(self, device: str, device_memory_bytes: int, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self.device_memory_bytes = device_memory_bytes = device_memory_bytes // ALIGN_BYTES * ALIGN_BYTES
        self._device = torch.device(device)
        # Written once, so that no later copy pays for fresh pages.
        self._buffer = torch.empty(device_memory_bytes, dtype=torch.uint8, device=self._device).zero_()
        self._memory = Extents(device_memory_bytes)
        self._kv = KvCache(self._memory, min(MAX_SLAB_BYTES, device_memory_bytes // SLABS_A_DEVICE))
        self._copier = Copier(self._device)
        self._models: dict[str, _Model] = {}
        self._skeletons: dict[tuple[str, str], Skeleton] = {}
        self._caches: dict[BlockShape, Tensor] = {}

    def add_model(self, name: str, spec: ModelSpec, source: str) -> None:
        least = spec.weight_bytes + BLOCK_TOKENS * spec.kv_bytes_per_token
        if least > self.device_memory_bytes:
            raise ModelTooLarge(
                f"model {name} needs {least} bytes of device memory, {self.device} has {self.device_memory_bytes}"
            )
        self._models[name] = _Model(name, spec, Meter(spec))

    def remove_model(self, name: str) -> None:
        self.evict(name)
        del self._models[name]

    def provide_image(self, model: str, image: Image | None) -> None:
        """Raises InvalidCheckpoint if the image is not one of this model."""
        known = self._models[model]
        known.image, known.source = image, None
        if image is None:
            return
        if known.skeleton is None:
            known.skeleton = self._skeleton(image.config_json, known.spec.dtype)
            known.shape = _block_shape(known.skeleton, known.spec.dtype)
        _check_image(known.skeleton, known.spec, image)
        known.source = _mapped(Path(image.path), image.nbytes)

    def resident(self) -> frozenset[str]:
        return frozenset(name for name, model in self._models.items() if model.extent and not model.job)

    def loading(self) -> frozenset[str]:
        return frozenset(name for name, model in self._models.items() if model.job)

    def begin_load(self, model: str) -> bool:
        known = self._models[model]
        if known.extent is not None:
            return True
        if known.source is None or known.image is None:
            raise EngineFailed(f"model {model} has no image to load from")
        extent = self._memory.allocate(known.source.numel(), ALIGN_BYTES)
        if extent is None:
            return False
        if self._device.type == "cuda":
            # Kernels that are still under way may use the bytes that this copy overwrites.
            torch.cuda.current_stream(self._device).synchronize()
        target = self._buffer[extent.start : extent.end]
        known.extent, known.job = extent, CopyJob(model, known.source, target)
        self._copier.submit(known.job)
        # Made while the copy runs: it takes some milliseconds.
        known.parameters = _parameters(known.image, target)
        return True

    def evict(self, model: str) -> None:
        known = self._models[model]
        if known.job is not None:
            self._copier.cancel(known.job)
            known.job = None
        if known.extent is not None:
            self._memory.free(known.extent)
            known.extent, known.parameters = None, {}
            if known.skeleton is not None and known.skeleton.bound == model:
                known.skeleton.bound = ""

    def finished_loads(self) -> list[LoadResult]:
        ended = []
        for job, result in self._copier.results():
            model = self._models.get(result.model)
            # A copy may have ended just before it was cancelled.
            if model is None or model.job is not job:
                continue
            model.job = None
            model.meter.loaded(result.duration_s)
            if result.error:
                self.evict(result.model)
            ended.append(result)
        return ended

    def fileno(self) -> int:
        return self._copier.fileno()

    def next_event_s(self) -> float | None:
        return None

    def grow_kv(self, request_id: str, model: str, tokens: int) -> bool:
        shape = self._models[model].shape
        if shape is None:
            raise EngineFailed(f"model {model} was never loaded")
        fresh = self._kv.grow(request_id, shape, tokens)
        if fresh:
            # What lay there may read as NaN, which no mask of the attention hides.
            self._cache(shape)[fresh] = 0
        return fresh is not None

    def drop_kv(self, request_id: str) -> None:
        self._kv.drop(request_id)

    def bind(self, model: str) -> tuple[Skeleton, BlockShape]:
        """Makes a resident model the one that its module tree computes; nothing is copied. `step` calls it."""
        known = self._models[model]
        if known.skeleton is None or known.shape is None or known.extent is None or known.job is not None:
            raise EngineFailed(f"model {model} is not on the device")
        if known.skeleton.bound != model:
            known.skeleton.bind(model, known.parameters)
        return known.skeleton, known.shape

    @torch.inference_mode()
    def step(self, model: str, items: Sequence[StepItem]) -> list[int | None]:
        started_s = time.monotonic()
        logits = self._forward(*self.bind(model), items)
        sampled = [item for item in items if item.sampling is not None]
        tokens = iter(sample(logits, sampled) if sampled else ())
        fed = sum(len(item.token_ids) for item in items)
        self._models[model].meter.stepped(fed, len(items), time.monotonic() - started_s)
        return [next(tokens) if item.sampling is not None else None for item in items]

    def costs(self, model: str) -> ModelCosts:
        return self._models[model].meter.costs()

    def weights_bytes(self) -> int:
        return sum(model.extent.nbytes for model in self._models.values() if model.extent)

    def kv_bytes(self) -> int:
        return self._kv.slab_bytes

    def check_integrity(self) -> None:
        self._memory.check_integrity()
        self._kv.check_integrity()
        used = self.device_memory_bytes - self._memory.free_bytes
        if used != self.weights_bytes() + self.kv_bytes():
            raise AssertionError("device memory: extents are neither weights nor KV")

    def close(self) -> None:
        for name in list(self._models):
            self.remove_model(name)
        self._copier.close()

    def _forward(self, skeleton: Skeleton, shape: BlockShape, items: Sequence[StepItem]) -> Tensor:
        """Logits of the last token of every item that samples, (items, vocabulary)."""
        feeds = [(item.start, len(item.token_ids), self._kv.table(item.request_id)) for item in items]
        ids = [token for item in items for token in item.token_ids]
        positions = [position for start, count, _ in feeds for position in range(start, start + count)]
        ends = torch.tensor([count for _, count, _ in feeds]).cumsum(0) - 1
        wanted = ends[torch.tensor([item.sampling is not None for item in items])]
        output = skeleton.module(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=wanted.to(self._device),
            step_plan=attention.plan(self._cache(shape), feeds),
        )
        logits: Tensor = output.logits[0]
        return logits

    def _cache(self, shape: BlockShape) -> Tensor:
        """All block places of a shape on the device, as one view."""
        if shape not in self._caches:
            count = self.device_memory_bytes // shape.nbytes
            flat = self._buffer[-count * shape.nbytes :].view(getattr(torch, shape.dtype)).view(count, -1)
            sizes = (shape.layers, 2, BLOCK_TOKENS, shape.kv_heads, shape.head_size)
            used = int(np.prod(sizes))
            self._caches[shape] = flat[:, :used].view(count, *sizes)
        return self._caches[shape]

    def _skeleton(self, config_json: str, dtype: str) -> Skeleton:
        key = (config_json, dtype)
        if key not in self._skeletons:
            self._skeletons[key] = Skeleton(config_json, getattr(torch, dtype), self._device)
        return self._skeletons[key]


def _block_shape(skeleton: Skeleton, dtype: str) -> BlockShape:
    config = skeleton.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return BlockShape(config.num_hidden_layers, heads, size, dtype, getattr(torch, dtype).itemsize)


def _check_image(skeleton: Skeleton, spec: ModelSpec, image: Image) -> None:
    names = {name: entry.shape for entry in image.tensors for name in (entry.name, *entry.aliases)}
    wrong = sorted(skeleton.missing(set(names)))
    wrong = wrong or [name for name in skeleton.missing(set()) if skeleton.shape_of(name) != names[name]]
    if wrong or image.nbytes != spec.weight_bytes:
        raise InvalidCheckpoint(
            f"image {image.path} is not of this model: {', '.join(wrong[:3]) or 'its size differs'}"
        )


def _parameters(image: Image, target: Tensor) -> dict[str, nn.Parameter]:
    """Every tensor of an image as a view of the device, under each of its names."""
    parameters = {}
    for entry in image.tensors:
        flat = target[entry.offset : entry.offset + entry.nbytes].view(getattr(torch, entry.dtype))
        parameter = nn.Parameter(flat.view(entry.shape), requires_grad=False)
        for name in (entry.name, *entry.aliases):
            parameters[name] = parameter
    return parameters


def _mapped(path: Path, nbytes: int) -> Tensor:
    """The image's bytes, mapped read-only. Raises InvalidCheckpoint if the file is gone or too short."""
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"image {path} cannot be mapped: {error}") from error
    with warnings.catch_warnings():
        # torch has no read-only tensors; nothing writes to this one.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(mapping, dtype=np.uint8))
