"""What can be said of a checkpoint without reading its weights."""

from dataclasses import dataclass
from pathlib import Path

from hekaton.engine.checkpoint import read_json, weight_files
from hekaton.errors import InvalidArgument

WIDTH_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it is now; equal ones give the same image."""

    source: str
    dtype: str
    """Empty: the checkpoint's own."""
    files: tuple[tuple[str, int, int], ...] = ()
    """Name, size and time of change of each file; empty for a name that is no local directory."""
    estimated_bytes: int = 0
    """Size of its image, 0 if unknown. The builder finds the true one."""


def examine(source: str, dtype: str) -> Checkpoint:
    """Looks at the files of `source`; blocks.

    Raises InvalidArgument for what can be no checkpoint, InvalidCheckpoint for a directory that has no safetensors.
    """
    if not source or source.startswith("-") or "\0" in source:
        raise InvalidArgument(f"source {source!r} is no checkpoint: give a directory or a Hugging Face id")
    if dtype and dtype not in WIDTH_BYTES:
        raise InvalidArgument(f"dtype {dtype!r} is unknown: use one of {', '.join(WIDTH_BYTES)}")
    try:
        directory = Path(source).expanduser()
        if not directory.is_dir():
            return Checkpoint(source, dtype)
        stats = [(path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file()]
    except (OSError, RuntimeError) as error:
        # No name that the file system takes, no such user, or nothing that this service may read.
        raise InvalidArgument(f"source {source!r} cannot be read: {error}") from error
    files = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    weights = sum(path.stat().st_size for path in weight_files(directory))
    return Checkpoint(source, dtype, files, int(weights * _growth(directory, dtype)))


def _growth(directory: Path, dtype: str) -> float:
    """Bytes of an element in `dtype` per byte of it in the file; 1 where the file's cannot be told."""
    config = read_json(directory / "config.json")
    own = WIDTH_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")))
    return WIDTH_BYTES[dtype] / own if dtype and own else 1.0
