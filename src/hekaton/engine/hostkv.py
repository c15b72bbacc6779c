"""Host memory for KV that has left the device: slabs in one file that has no name.

Nobody else can open the file, and it goes with its process however that ends, so nothing is left to clean up.
"""

import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from hekaton.engine.copier import Piece
from hekaton.engine.device import Extent, Extents
from hekaton.engine.image import ALIGN_BYTES, aligned
from hekaton.engine.kv import MAX_SLAB_BLOCKS, UNIT_BYTES, BlockShape, KvCache
from hekaton.errors import InvalidArgument

CHUNK_BYTES = 1 << 20
"""Of the file, that get their memory together."""


class HostKv:
    """Blocks by request, as on the device. No memory is taken before it is used; then it is kept.

    Raises InvalidArgument if no file can be made in `directory`.
    """

    def __init__(self, directory: Path | None, nbytes: int, slab_blocks: int = MAX_SLAB_BLOCKS) -> None:
        self.limit_bytes = nbytes // ALIGN_BYTES * ALIGN_BYTES
        self._books = Extents(self.limit_bytes)
        self._kv = KvCache(self._books, 0, least_blocks=slab_blocks)
        self._backed = bytearray(-(-self.limit_bytes // CHUNK_BYTES))
        """1 for each part of the file that has memory."""
        self._descriptor: int | None = None
        if self.limit_bytes:
            try:
                with tempfile.TemporaryFile(dir=directory) as file:
                    file.truncate(self.limit_bytes)
                    self._buffer = torch.frombuffer(mmap.mmap(file.fileno(), self.limit_bytes), dtype=torch.uint8)
                    self._descriptor = os.dup(file.fileno())
            except OSError as error:
                raise InvalidArgument(f"host_kv_dir={directory} cannot be used: {error.strerror}") from error

    @property
    def assigned_bytes(self) -> int:
        """Of slabs, and of parcels."""
        return self.limit_bytes - self._books.free_bytes

    @property
    def used_bytes(self) -> int:
        """Of blocks that hold KV."""
        return self._kv.used_bytes

    def take(self, request_id: str, shape: BlockShape, tokens: int) -> bool:
        """Blocks for `tokens` tokens. False, and nothing changed, if there is no room, here or in the file system."""
        if self._descriptor is None or (fresh := self._kv.grow(request_id, shape, tokens)) is None:
            return False
        try:
            for block in fresh:
                self._back(self._descriptor, block * UNIT_BYTES, shape.nbytes)
        except OSError:
            self._kv.drop(request_id)
            return False
        return True

    def table(self, request_id: str) -> list[int]:
        """A request's blocks, in the order of its tokens. Raises KeyError."""
        return self._kv.table(request_id)

    def place(self, block: int, shape: BlockShape) -> Tensor:
        """The bytes of a block, flat."""
        return self._buffer[block * UNIT_BYTES :][: shape.nbytes]

    def drop(self, request_id: str) -> list[Piece]:
        """Frees a request's blocks; unknown ids are ignored. What is to be copied to keep slabs full.

        Others' blocks are booked where they will be, so these copies go before all that are asked for from now on.
        """
        if not self._kv.holds(request_id):
            return []
        shape = self._kv.shape(request_id)
        self._kv.drop(request_id)
        moved = self._kv.squeeze(shape)
        return [(self.place(old, shape), self.place(new, shape)) for old, new in moved.items()]

    def reserve(self, nbytes: int) -> Extent | None:
        """Room in the books for a parcel, whose bytes are in a file of its own. None if there is none."""
        return self._books.allocate(aligned(nbytes))

    def free(self, room: Extent) -> None:
        """A parcel is gone."""
        self._books.free(room)

    def check_integrity(self) -> None:
        self._books.check_integrity()
        self._kv.check_integrity()

    def close(self) -> None:
        """Gives the memory back once no view of a block is left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            del self._buffer

    def _back(self, descriptor: int, start: int, nbytes: int) -> None:
        """Takes memory for bytes that are about to be written: without a page in the file system that would kill."""
        for chunk in range(start // CHUNK_BYTES, -(-(start + nbytes) // CHUNK_BYTES)):
            if not self._backed[chunk]:
                offset = chunk * CHUNK_BYTES
                os.posix_fallocate(descriptor, offset, min(CHUNK_BYTES, self.limit_bytes - offset))
                self._backed[chunk] = 1
