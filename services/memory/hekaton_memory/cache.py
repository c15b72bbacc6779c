"""The books of the host's weight cache: which images there are, who leases them, what goes when room is needed."""

import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from hekaton.errors import ResourceExhausted
from hekaton_memory.segments import Segments

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: str
    holder_id: str
    digest: str
    expires_s: float
    """On the cache's own clock."""


@dataclass(frozen=True, slots=True)
class CachedImage:
    digest: str
    nbytes: int
    leases: int
    pinned: bool


class Cache:
    """Least recently used images go first, leased and pinned ones never. Not thread-safe: for one event loop."""

    def __init__(self, segments: Segments, budget_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._segments = segments
        self._clock = clock
        self._reserved_bytes = 0
        self._leases: dict[str, Lease] = {}
        self._images: OrderedDict[str, int] = OrderedDict(segments.adopt())
        self.budget_bytes = budget_bytes
        self.pinned: frozenset[str] = frozenset()
        """Digests of images that never go."""
        self.reaped = 0
        """Leases that ran out."""
        while self.used_bytes > budget_bytes:
            self._evict(next(iter(self._images)))

    @property
    def used_bytes(self) -> int:
        return sum(list(self._images.values()))

    def __contains__(self, digest: str) -> bool:
        return digest in self._images

    def forget_removed(self, digest: str) -> None:
        """Takes an image off the books, and its leases, if somebody else has removed its file."""
        if digest in self._images and not self._segments.image_path(digest).exists():
            log.error("image removed by somebody else; it is built again when it is asked for", digest=digest)
            del self._images[digest]
            self._leases = {key: lease for key, lease in self._leases.items() if lease.digest != digest}

    def size_bytes(self, digest: str) -> int:
        """Of an image that is here."""
        return self._images[digest]

    def images(self) -> list[CachedImage]:
        """All images, the next to go first."""
        self._expire()
        counts = Counter(lease.digest for lease in self._leases.values())
        return [
            CachedImage(digest, nbytes, counts[digest], digest in self.pinned)
            for digest, nbytes in self._images.items()
        ]

    # ---- room

    @contextmanager
    def reserved(self, nbytes: int) -> Iterator[None]:
        """Keeps room for an image that is being built. Raises ResourceExhausted if there is none to be had."""
        self._make_room(nbytes, nbytes)
        self._reserved_bytes += nbytes
        try:
            yield
        finally:
            self._reserved_bytes -= nbytes

    def install(self, workplace: Path, digest: str) -> None:
        """Takes a finished build in. Raises ResourceExhausted if it turned out larger than there is room."""
        nbytes = self._segments.built_bytes(workplace, digest)
        if digest not in self._images:
            self._make_room(nbytes, 0)
            self._segments.install(workplace, digest)
            self._images[digest] = nbytes

    def _make_room(self, nbytes: int, new_on_disk: int) -> None:
        """Evicts until `nbytes` more fit the budget and `new_on_disk` bytes the file system; nothing if in vain."""
        free = [image for image in self.images() if not image.leases and not image.pinned]
        self._check_room(nbytes, new_on_disk, sum(image.nbytes for image in free))
        for image in free:
            if self._lacking(nbytes, new_on_disk) > 0:
                self._evict(image.digest)
        self._check_room(nbytes, new_on_disk, 0)

    def _check_room(self, nbytes: int, new_on_disk: int, evictable: int) -> None:
        if self._lacking(nbytes, new_on_disk) > evictable:
            leased = sum(image.nbytes for image in self.images() if image.leases)
            pinned = sum(image.nbytes for image in self.images() if image.pinned)
            raise ResourceExhausted(
                f"no room for an image of {nbytes} bytes: the budget (host_memory) is {self.budget_bytes}, "
                f"{leased} are leased, {pinned} pinned, {self._reserved_bytes} kept for builds, "
                f"{self._segments.free_bytes()} free in the file system of segment_dir; "
                "unpin or free some, raise the budget, or use a smaller model"
            )

    def _lacking(self, nbytes: int, new_on_disk: int) -> int:
        over_budget = self.used_bytes + self._reserved_bytes + nbytes - self.budget_bytes
        if not new_on_disk:
            return over_budget
        return max(over_budget, self._reserved_bytes + new_on_disk - self._segments.free_bytes())

    def _evict(self, digest: str) -> None:
        self._segments.drop_image(digest)
        nbytes = self._images.pop(digest)
        log.info("image evicted", digest=digest, nbytes=nbytes)

    # ---- leases

    def lease(self, holder_id: str, digest: str, duration_s: float) -> Lease:
        """Pins an image that is here, and counts as its use."""
        lease = Lease(uuid.uuid4().hex, holder_id, digest, self._clock() + duration_s)
        self._leases[lease.lease_id] = lease
        self._images.move_to_end(digest)
        return lease

    def renew(self, holder_id: str, lease_ids: list[str], duration_s: float) -> list[str]:
        """Extends the leases of a holder; returns the ids of those that ran out or are not his."""
        self._expire()
        lost = []
        for lease_id in lease_ids:
            lease = self._leases.get(lease_id)
            if lease is None or lease.holder_id != holder_id:
                lost.append(lease_id)
            else:
                self._leases[lease_id] = Lease(lease_id, holder_id, lease.digest, self._clock() + duration_s)
        return lost

    def release(self, lease_id: str) -> None:
        """Ends a lease; nothing happens if there is none."""
        self._leases.pop(lease_id, None)

    def _expire(self) -> None:
        now_s = self._clock()
        for lease in [lease for lease in self._leases.values() if lease.expires_s <= now_s]:
            log.warning("lease ran out", lease_id=lease.lease_id, holder_id=lease.holder_id, digest=lease.digest)
            del self._leases[lease.lease_id]
            self.reaped += 1

    def check_integrity(self) -> None:
        """Raises RuntimeError if the books and the directory differ."""
        paths = {digest: self._segments.image_path(digest) for digest in self._images}
        sizes = {digest: path.stat().st_size for digest, path in paths.items() if path.exists()}
        if sizes != self._images:
            raise RuntimeError(f"the books say {dict(self._images)}, the directory {sizes}")
        if self.used_bytes > self.budget_bytes or self._reserved_bytes < 0:
            raise RuntimeError(f"{self.used_bytes} bytes used of {self.budget_bytes}, {self._reserved_bytes} reserved")
        if orphans := [lease for lease in self._leases.values() if lease.digest not in self._images]:
            raise RuntimeError(f"leases of images that are gone: {orphans}")
