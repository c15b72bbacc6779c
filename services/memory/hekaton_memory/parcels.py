"""The parcels of this host: KV that workers have left in files for those who get their requests next.

The directory is the book. A file has a name only when it is complete, and never changes then (`hekaton.engine.parcel`):
nothing has to be remembered of one, and a service that is started again finds what the last one had.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from hekaton.engine.parcel import ParcelReader, give_name, parcel_name, unnamed
from hekaton.errors import InvalidArgument, KvLost, ResourceExhausted

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A whole parcel."""

    path: Path
    tokens: int
    nbytes: int


class Parcels:
    """At most `budget_bytes` of them. One that nobody takes is removed after `lifetime_s`. Methods block.

    Raises InvalidArgument if it cannot have its directory.
    """

    def __init__(
        self, directory: Path, budget_bytes: int, lifetime_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"no directory for KV in segment_dir: {error}") from error
        self.directory = directory
        self.budget_bytes = budget_bytes
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._seen_s: dict[str, float] = {}
        """When each file was found first."""
        self._coming_bytes = 0
        self.swept = 0
        """Parcels that nobody took."""

    def sizes(self) -> list[int]:
        """In bytes, of all that are here."""
        found: list[int] = []
        with suppress(FileNotFoundError):  # Somebody has removed the directory.
            for entry in os.scandir(self.directory):
                with suppress(FileNotFoundError):  # Taken this moment.
                    found.append(entry.stat().st_size)
        return found

    def find(self, request_id: str, epoch: int) -> Held:
        """Raises KvLost if it is not here, or not whole: then it is removed."""
        path = self._path(request_id, epoch)
        try:
            with closing(ParcelReader(path)) as reader:
                manifest = reader.manifest
                if (manifest.request_id, manifest.epoch) != (request_id, epoch):
                    raise KvLost(f"parcel {path.name} is of another request: compute its KV again")
                return Held(path, manifest.tokens, reader.nbytes)
        except KvLost:
            path.unlink(missing_ok=True)
            raise

    def accept(self, request_id: str, epoch: int) -> Held:
        """A worker of this host has made one. Raises KvLost, or ResourceExhausted when it is too much and removed."""
        held = self.find(request_id, epoch)
        try:
            self._check_room(0)
        except ResourceExhausted:
            held.path.unlink(missing_ok=True)
            raise
        return held

    def remove(self, held: Held) -> None:
        held.path.unlink(missing_ok=True)

    @contextmanager
    def coming(self, request_id: str, epoch: int, nbytes: int) -> Iterator["Coming"]:
        """One that comes from another host. Nothing is left of it unless it is sealed. Raises ResourceExhausted."""
        self._check_room(nbytes)
        self._coming_bytes += nbytes
        try:
            with closing(Coming(unnamed(self.directory), self._path(request_id, epoch), nbytes)) as coming:
                yield coming
        except OSError as error:
            raise ResourceExhausted(f"KV from another host cannot be written: {error}") from error
        finally:
            self._coming_bytes -= nbytes

    def sweep(self) -> None:
        """Removes those that have been here for too long. Raises OSError if the directory is gone for good."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        now_s = self._clock()
        names = [path.name for path in self.directory.iterdir()]
        self._seen_s = {name: self._seen_s.get(name, now_s) for name in names}
        for name, seen_s in self._seen_s.items():
            if now_s - seen_s >= self.lifetime_s:
                (self.directory / name).unlink(missing_ok=True)
                log.warning("nobody took this KV", parcel=name)
                self.swept += 1

    def close(self) -> None:
        """Removes all of them, and the directory."""
        for path in self.directory.iterdir():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # A worker has just left another one.
            self.directory.rmdir()

    def _path(self, request_id: str, epoch: int) -> Path:
        return self.directory / parcel_name(request_id, epoch)

    def _check_room(self, nbytes: int) -> None:
        used = sum(self.sizes()) + self._coming_bytes
        if used + nbytes > self.budget_bytes:
            raise ResourceExhausted(
                f"no room for {nbytes} bytes of KV: {used} of {self.budget_bytes} (parcel_memory) are in use"
            )


class Coming:
    """A file without a name, in the making."""

    def __init__(self, descriptor: int, path: Path, nbytes: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._nbytes = nbytes
        self._written = 0

    def write(self, data: bytes) -> None:
        """Raises OSError, of a full file system for one, and KvLost if it is more than was said."""
        self._written += len(data)
        if self._written > self._nbytes:
            raise KvLost(f"more than {self._nbytes} bytes came of parcel {self._path.name}: compute its KV again")
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(self._descriptor, view) :]

    def seal(self) -> None:
        """All has come: it gets its name. Raises KvLost if something is missing, OSError if there is one already."""
        if self._written != self._nbytes:
            raise KvLost(f"{self._written} of {self._nbytes} bytes came of parcel {self._path.name}")
        give_name(self._descriptor, self._path)

    def close(self) -> None:
        os.close(self._descriptor)
