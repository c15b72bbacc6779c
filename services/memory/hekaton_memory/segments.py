"""The directory of weight images: a tmpfs that this service alone writes and workers map.

`DIGEST.img` holds the bytes, `DIGEST.json` beside it what they mean. A build writes into a directory of its own, so
that an orphaned builder of a service that crashed can never put anything among the images.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import structlog

from hekaton.engine.image import Prepared, digest_of, read_prepared
from hekaton.errors import EngineFailed, InvalidArgument

DIGEST = re.compile(r"[0-9a-zA-Z_-]{8,128}")
BUILD_PREFIX = "build-"

log = structlog.get_logger(__name__)


class Segments:
    """Holds the directory's lock from its making to `close`. Raises InvalidArgument if it cannot have it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sides: set[str] = set()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise InvalidArgument(f"segment_dir={directory} cannot be used: {error.strerror}") from error
        try:
            self._take_lock()
        except InvalidArgument:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        """Locks the directory itself: the lock goes with the process and leaves no file behind."""
        stat = os.fstat(self._lock)
        if stat.st_uid != os.geteuid():
            raise InvalidArgument(f"segment_dir={self._directory} belongs to another user: choose one of your own")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgument(
                f"segment_dir={self._directory} is in use by another memory service: stop it or choose another"
            ) from error
        if not self._directory.exists() or self._directory.stat().st_ino != stat.st_ino:
            raise InvalidArgument(f"segment_dir={self._directory} was just removed by another service: start again")

    def adopt(self) -> dict[str, int]:
        """Takes over what a crash has left: size by digest of the whole images, oldest first. Removes the rest.

        Reads all of them, about a second a gigabyte: their content must be what their name says.
        """
        for left in self._directory.glob(f"{BUILD_PREFIX}*"):
            self._clear(left)
        images = sorted(self._directory.glob("*.img"), key=lambda path: path.stat().st_mtime)
        whole = {path.stem: path.stat().st_size for path in images if self._is_whole(path)}
        for path in [*self._directory.glob("*.img"), *self._directory.glob("*.json")]:
            if path.stem not in whole:
                log.info("leftover removed", path=str(path))
                path.unlink()
        self._sides = set(whole)
        return whole

    def _is_whole(self, path: Path) -> bool:
        stat = path.stat()
        try:
            prepared = read_prepared(self.side_path(path.stem))
            promised = (prepared.spec.digest, prepared.spec.weight_bytes, os.geteuid())
            return promised == (path.stem, stat.st_size, stat.st_uid) and digest_of(path, prepared) == path.stem
        except (OSError, msgspec.DecodeError):
            return False

    def image_path(self, digest: str) -> Path:
        return self._directory / f"{digest}.img"

    def side_path(self, digest: str) -> Path:
        return self._directory / f"{digest}.json"

    def knows(self, digest: str) -> bool:
        """Whether `read` can answer, even if the image itself has been dropped."""
        return digest in self._sides

    def read(self, digest: str) -> Prepared:
        """What the image of a known digest means; blocks."""
        return read_prepared(self.side_path(digest))

    def free_bytes(self) -> int:
        stats = os.statvfs(self._directory)
        return stats.f_bavail * stats.f_frsize

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A new directory for one build, removed at the end of the block."""
        path = self._directory / f"{BUILD_PREFIX}{uuid.uuid4().hex}"
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            self._clear(path)

    def built_bytes(self, workplace: Path, digest: str) -> int:
        """Size of the image that a build left. Raises EngineFailed if there is none."""
        image, side = workplace / f"{digest}.img", workplace / f"{digest}.json"
        if not DIGEST.fullmatch(digest) or not image.is_file() or not side.is_file():
            raise EngineFailed(f"the image builder said {digest!r} is ready, but its files are not there")
        return image.stat().st_size

    def install(self, workplace: Path, digest: str) -> None:
        """Moves a finished build among the images."""
        (workplace / f"{digest}.img").replace(self.image_path(digest))
        (workplace / f"{digest}.json").replace(self.side_path(digest))
        self._sides.add(digest)

    def drop_image(self, digest: str) -> None:
        """Removes an image but keeps its description. Who has it mapped keeps it until he lets go."""
        self.image_path(digest).unlink(missing_ok=True)

    def _clear(self, workplace: Path) -> None:
        """Removes a build's directory; under a new name first, so that an orphaned builder cannot refill it."""
        grave = workplace.with_name(f"{BUILD_PREFIX}{uuid.uuid4().hex}")
        workplace.rename(grave)
        shutil.rmtree(grave)

    def close(self) -> None:
        """Removes everything of ours, and the directory if nothing else is in it. Gives the lock back."""
        for path in self._directory.glob(f"{BUILD_PREFIX}*"):
            self._clear(path)
        for path in [*self._directory.glob("*.img"), *self._directory.glob("*.json")]:
            path.unlink()
        with suppress(OSError):  # Somebody else's files are in it, or it is a mount point.
            self._directory.rmdir()
        os.close(self._lock)
