"""A parcel: the KV of one request on its way to another worker, in one file that never changes.

    MAGIC | bytes of the manifest | manifest, MessagePack | a checksum of each block | padding | blocks

It is written without a name and gets one, of its request and epoch, when it is complete. So nobody ever sees a part
of one, a writer that dies leaves nothing behind, and one that was stopped and wakes up writes into nobody's KV.

No torch here: the memory service reads these too.
"""

import hashlib
import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hekaton.engine.image import aligned
from hekaton.engine.kv import BLOCK_TOKENS, BlockShape
from hekaton.errors import KvLost
from hekaton.facts import ModelSpec

MAGIC = b"hekaton-parcel-1"
HEAD = struct.Struct("<16sI")
SUM = struct.Struct("<q")
KEY_BYTES = 8
MAX_MANIFEST_BYTES = 4 << 20


class Manifest(msgspec.Struct, frozen=True):
    """What the blocks of a parcel are."""

    request_id: str
    epoch: int
    model_digest: str
    shape: BlockShape
    tokens: int
    """Whose KV the blocks hold."""
    keys: tuple[bytes, ...]
    """Of each block: what its tokens and all before them are."""

    @property
    def blocks(self) -> int:
        return -(-self.tokens // BLOCK_TOKENS)

    def is_of(self, request_id: str, spec: ModelSpec) -> bool:
        """Whether this is KV of that request and model."""
        shape = self.shape
        # The digest covers the configuration; the rest is for a parcel that lies about its blocks.
        nbytes = 2 * shape.layers * shape.kv_heads * shape.head_size * shape.itemsize
        named = (self.request_id, self.model_digest) == (request_id, spec.digest)
        return named and (shape.dtype, nbytes) == (spec.dtype, spec.kv_bytes_per_token)

    def covers(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens have their KV here; 0 if it is that of other tokens.

        The last of them is left to be computed. Where the parcel knows more tokens, only whole blocks count.
        """
        tokens = self.tokens if self.tokens < len(token_ids) else (len(token_ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        keys = keys_of(token_ids[:tokens])
        return tokens if keys == self.keys[: len(keys)] else 0


def keys_of(token_ids: Sequence[int]) -> tuple[bytes, ...]:
    """A hash for each block of tokens, of it and of all before it."""
    keys: list[bytes] = []
    running = hashlib.blake2b(digest_size=KEY_BYTES)
    for start in range(0, len(token_ids), BLOCK_TOKENS):
        running.update(array("q", token_ids[start : start + BLOCK_TOKENS]).tobytes())
        keys.append(running.copy().digest())
    return tuple(keys)


def parcel_name(request_id: str, epoch: int) -> str:
    """Ids are chosen by clients, names of files are not."""
    return f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}-{epoch}.kv"


def unnamed(directory: Path) -> int:
    """A descriptor of a new file that has no name yet. Raises OSError."""
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def give_name(descriptor: int, path: Path) -> None:
    """Raises FileExistsError rather than replace anything, and other OSErrors."""
    # Without a directory, however useless, Python links the link in /proc instead of the file.
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=root)
    finally:
        os.close(root)


class ParcelWriter:
    """A parcel in the making. Every method raises OSError, of a full file system for one."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.path = directory / parcel_name(manifest.request_id, manifest.epoch)
        self._packed = msgspec.msgpack.encode(manifest)
        self._data_start = _data_start(len(self._packed), manifest.blocks)
        self._descriptor = unnamed(directory)

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return self._data_start + self.manifest.blocks * self.manifest.shape.nbytes

    def write(self, index: int, block: memoryview) -> None:
        """By a system call and not into a mapping, where a full file system would kill the process."""
        _write(self._descriptor, block, self._data_start + index * self.manifest.shape.nbytes)

    def commit(self, sums: Sequence[int]) -> None:
        """The blocks are there: their checksums, and a name."""
        head = HEAD.pack(MAGIC, len(self._packed)) + self._packed + b"".join(map(SUM.pack, sums))
        _write(self._descriptor, head.ljust(self._data_start, b"\0"), 0)
        give_name(self._descriptor, self.path)

    def close(self) -> None:
        """Without a name, the file is gone then."""
        os.close(self._descriptor)


class ParcelReader:
    """An open parcel. Raises KvLost if there is none at `path`, or it is not whole."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise KvLost(f"there is no parcel {path.name} ({error.strerror}): compute its KV again") from error
        try:
            self._read_head()
        except (OSError, ValueError, msgspec.MsgspecError, struct.error) as error:
            os.close(self._descriptor)
            raise KvLost(f"parcel {path.name} is damaged ({error}): compute its KV again") from error

    def _read_head(self) -> None:
        magic, length = HEAD.unpack(os.pread(self._descriptor, HEAD.size, 0))
        if magic != MAGIC or length > MAX_MANIFEST_BYTES:
            raise ValueError("it is of another kind")
        self.manifest = msgspec.msgpack.decode(os.pread(self._descriptor, length, HEAD.size), type=Manifest)
        blocks = self.manifest.blocks
        self._data_start = _data_start(length, blocks)
        self.nbytes = self._data_start + blocks * self.manifest.shape.nbytes
        size = os.fstat(self._descriptor).st_size
        if self.nbytes != size or len(self.manifest.keys) != blocks:
            raise ValueError(f"{size} bytes instead of {self.nbytes}")
        packed = os.pread(self._descriptor, blocks * SUM.size, HEAD.size + length)
        self.sums = [sum_ for (sum_,) in SUM.iter_unpack(packed)]

    def read(self, index: int, into: memoryview) -> None:
        """Fills a block. Raises OSError."""
        start = self._data_start + index * self.manifest.shape.nbytes
        if os.preadv(self._descriptor, [into], start) != into.nbytes:
            raise OSError("a parcel became shorter")

    def close(self) -> None:
        os.close(self._descriptor)


def _data_start(manifest_bytes: int, blocks: int) -> int:
    return aligned(HEAD.size + manifest_bytes + blocks * SUM.size)


def _write(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view.nbytes:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
