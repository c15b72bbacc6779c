"""Weights as bytes: host images mapped, parameters as views of the device, and what moves them there."""

import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hekaton.engine.copier import CHUNK_BYTES
from hekaton.engine.skeleton import Skeleton
from hekaton.errors import InvalidCheckpoint
from hekaton.facts import Image, ModelSpec


def mapped(path: Path, nbytes: int) -> Tensor:
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


def check_image(skeleton: Skeleton, spec: ModelSpec, image: Image) -> None:
    """Raises InvalidCheckpoint if an image is not one of the model that a tree is made for."""
    names = {name: entry.shape for entry in image.tensors for name in (entry.name, *entry.aliases)}
    wrong = sorted(skeleton.missing(set(names)))
    wrong = wrong or [name for name in skeleton.missing(set()) if skeleton.shape_of(name) != names[name]]
    if wrong or image.nbytes != spec.weight_bytes:
        raise InvalidCheckpoint(
            f"image {image.path} is not of this model: {', '.join(wrong[:3]) or 'its size differs'}"
        )


def parameters(image: Image, target: Tensor) -> dict[str, nn.Parameter]:
    """Every tensor of an image as a view of the device, under each of its names."""
    found = {}
    for entry in image.tensors:
        flat = target[entry.offset : entry.offset + entry.nbytes].view(getattr(torch, entry.dtype))
        parameter = nn.Parameter(flat.view(entry.shape), requires_grad=False)
        for name in (entry.name, *entry.aliases):
            found[name] = parameter
    return found


@dataclass(frozen=True, slots=True)
class Gate:
    """A part of a module tree that may compute when this many bytes of the image are there."""

    module: nn.Module
    nbytes: int


def gates(skeleton: Skeleton, image: Image) -> list[Gate]:
    """One for each part of the tree."""
    ends = {name: entry.offset + entry.nbytes for entry in image.tensors for name in (entry.name, *entry.aliases)}
    return [Gate(module, max((ends[name] for name in names), default=0)) for module, names in skeleton.parts()]


@contextmanager
def gated(parts: Iterable[Gate], wait: Callable[[int], None]) -> Iterator[None]:
    """Within the block every part calls `wait` with its number of bytes before it computes."""
    with ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.module.register_forward_pre_hook(_hook(part.nbytes, wait)).remove)
        yield


def _hook(nbytes: int, wait: Callable[[int], None]) -> Callable[[nn.Module, object], None]:
    return lambda module, args: wait(nbytes)


def shift(views: Iterable[nn.Parameter], nbytes: int) -> None:
    """Lets parameters look at the bytes so much further on. They stay the same objects, wherever they are bound."""
    for view in {id(view): view for view in views}.values():
        offset = view.storage_offset() + nbytes // view.element_size()
        view.data = view.data.as_strided(view.shape, view.stride(), offset)


def move(buffer: Tensor, source: int, target: int, nbytes: int) -> None:
    """Moves bytes within a buffer, to where they may overlap themselves."""
    offsets = range(0, nbytes, CHUNK_BYTES)
    for offset in offsets if target < source else reversed(offsets):
        size = min(CHUNK_BYTES, nbytes - offset)
        piece = buffer[source + offset : source + offset + size]
        overlaps = abs(target - source) < size
        buffer[target + offset : target + offset + size].copy_(piece.clone() if overlaps else piece)
