"""Checks a checkpoint's files before anything loads them. No torch: only JSON and lengths are looked at.

The safetensors format: eight bytes of header length (little endian), a JSON header that maps names to dtype, shape and
offsets, then the bytes, without gaps.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from hekaton.errors import InvalidCheckpoint

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
MAX_HEADER_BYTES = 100 << 20
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


def check(directory: Path) -> None:
    """Raises InvalidCheckpoint, naming the file and what is wrong with it."""
    if not directory.is_dir():
        raise InvalidCheckpoint(f"{directory} is not a directory: give the one that holds config.json")
    read_json(directory / "config.json")
    for path in weight_files(directory):
        _check_tensors(path)


def weight_files(directory: Path) -> Sequence[Path]:
    """The safetensors files of a checkpoint."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidCheckpoint(f"{index}: there is no weight_map in it")
        names = sorted({str(name) for name in weight_map.values()})
        if any("/" in name or name.startswith(".") for name in names):
            raise InvalidCheckpoint(f"{index}: files must lie beside it")
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise InvalidCheckpoint(f"{index} names files that are missing: {', '.join(missing)}")
        return [directory / name for name in names]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    pickled = sorted(path.name for pattern in PICKLED for path in directory.glob(pattern))
    if pickled:
        raise InvalidCheckpoint(
            f"{directory} holds pickled weights only ({pickled[0]}), which can run code when loaded: "
            "convert them to safetensors"
        )
    raise InvalidCheckpoint(f"{directory} holds no model.safetensors")


def read_json(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidCheckpoint(f"{path} is missing") from error
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise InvalidCheckpoint(f"{path} holds no JSON object")
    return document


def _check_tensors(path: Path) -> None:
    """Header and length of one file: every byte belongs to exactly one tensor, and all are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise InvalidCheckpoint(f"{path} is truncated or corrupt: its header does not fit into {size} bytes")
        header = file.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, dict[str, object]])
        entries.pop("__metadata__", None)
        tensors = msgspec.convert(entries, type=dict[str, Tensor])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path} is corrupt: bad header: {error}") from error
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        width = DTYPE_BYTES.get(tensor.dtype)
        if width is None:
            raise InvalidCheckpoint(f"{path}: tensor {name} has the unsupported type {tensor.dtype}")
        start, stop = tensor.data_offsets
        if start != end or stop - start != math.prod(tensor.shape) * width:
            raise InvalidCheckpoint(f"{path} is corrupt: the bytes of tensor {name} do not fit its shape")
        end = stop
    if size != 8 + length + end:
        raise InvalidCheckpoint(f"{path} is truncated or corrupt: {size} bytes, its header promises {8 + length + end}")
