"""A weight image on disk: `<digest>.img`, one flat run of aligned tensors, and `<digest>.json`, what is known of it.

No torch here: the memory service reads these without it.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hekaton.facts import ModelSpec, TensorEntry

ALIGN_BYTES = 256
"""Every tensor starts at a multiple of this, in the image and on the device."""
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the builder learnt of a checkpoint. Tensors are in execution order, tied ones once."""

    spec: ModelSpec
    tensors: tuple[TensorEntry, ...]
    config_json: str
    tokenizer_json: str
    """In the format of the `tokenizers` library; empty if the checkpoint has no tokenizer."""
    chat_template: str
    special_tokens: dict[str, str]


def layout(tensors: Sequence[tuple[str, str, tuple[int, ...], int, tuple[str, ...]]]) -> tuple[TensorEntry, ...]:
    """Gives each (name, dtype, shape, bytes, aliases) its aligned offset."""
    entries: list[TensorEntry] = []
    offset = 0
    for name, dtype, shape, nbytes, aliases in tensors:
        entries.append(TensorEntry(name, dtype, shape, offset, nbytes, aliases))
        offset = aligned(offset + nbytes)
    return tuple(entries)


def image_bytes(tensors: Sequence[TensorEntry]) -> int:
    """Size of the image that holds these tensors."""
    return max((aligned(entry.offset + entry.nbytes) for entry in tensors), default=0)


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES


def begun_digest(prepared: Prepared) -> "hashlib._Hash":
    """The hash of what is known of an image, to be fed with the bytes of its tensors in order."""
    identity = replace(prepared, spec=replace(prepared.spec, digest=""))
    return hashlib.sha256(repr(identity).encode())


def name_of(digest: "hashlib._Hash") -> str:
    """The name of an image whose content has been hashed."""
    return digest.hexdigest()[:32]


def digest_of(path: Path, prepared: Prepared) -> str:
    """What an image must be called by its content; reads all of it. Raises OSError."""
    digest = begun_digest(prepared)
    with path.open("rb") as file:
        for entry in prepared.tensors:
            file.seek(entry.offset)
            for start in range(0, entry.nbytes, READ_BYTES):
                digest.update(file.read(min(READ_BYTES, entry.nbytes - start)))
    return name_of(digest)


def write_prepared(path: Path, prepared: Prepared) -> None:
    """Writes the side file, whole or not at all."""
    temporary = path.with_suffix(".json.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(prepared))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_prepared(path: Path) -> Prepared:
    """Raises OSError, or msgspec.DecodeError if the file is not one of ours."""
    return msgspec.json.decode(path.read_bytes(), type=Prepared)
