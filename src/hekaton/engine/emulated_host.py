"""The host memory of an emulated device: KV that has left it, and when its copies end.

Copies to the host go one after the other, and so do those back; the two directions do not hinder each other.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostedKv:
    model: str
    tokens: int
    nbytes: int
    ready_s: float
    """When the copy to the host ends."""


class EmulatedHost:
    """Keeps the books of `limit_bytes` bytes."""

    def __init__(self, limit_bytes: int, bandwidth_bytes_per_s: float) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._bandwidth = bandwidth_bytes_per_s
        self._held: dict[str, HostedKv] = {}
        self._returns: dict[str, float] = {}
        """When the copies back end, in that order."""
        self._out_free_s = 0.0
        self.in_free_s = 0.0
        """When the last copy back ends."""

    def ends_s(self) -> list[float]:
        """When the next copy back ends, if there is one."""
        return list(self._returns.values())[:1]

    def held(self, request_id: str) -> HostedKv:
        """Raises KeyError if nothing of the request is here."""
        return self._held[request_id]

    def take(self, request_id: str, model: str, tokens: int, nbytes: int, now_s: float) -> bool:
        """Begins to copy a request's KV here. False if there is no room."""
        if self.used_bytes + nbytes > self.limit_bytes:
            return False
        self.used_bytes += nbytes
        self._held[request_id] = HostedKv(model, tokens, nbytes, self.depart(nbytes, now_s))
        return True

    def adopt(self, request_id: str, model: str, tokens: int, nbytes: int, now_s: float) -> bool:
        """Books a parcel, whose bytes are here already. False if there is no room."""
        if self.used_bytes + nbytes > self.limit_bytes:
            return False
        self.used_bytes += nbytes
        self._held[request_id] = HostedKv(model, tokens, nbytes, now_s)
        return True

    def depart(self, nbytes: int, now_s: float) -> float:
        """Begins to copy KV into a parcel: when that ends."""
        self._out_free_s = max(now_s, self._out_free_s) + nbytes / self._bandwidth
        return self._out_free_s

    def holds(self, request_id: str) -> bool:
        return request_id in self._held

    def bring(self, request_id: str, now_s: float) -> float:
        """Begins to copy a request's KV back. How long that takes, once it has begun."""
        held = self._held[request_id]
        took_s = held.nbytes / self._bandwidth
        self.in_free_s = max(now_s, self.in_free_s, held.ready_s) + took_s
        self._returns[request_id] = self.in_free_s
        return took_s

    def drop(self, request_id: str) -> None:
        """Frees a request's room; unknown ids are ignored."""
        held = self._held.pop(request_id, None)
        self._returns.pop(request_id, None)
        self.used_bytes -= held.nbytes if held else 0

    def returned(self, now_s: float) -> list[str]:
        """Requests whose KV has come back since the last call; their room here is free."""
        came = [request_id for request_id, end_s in self._returns.items() if end_s <= now_s]
        for request_id in came:
            self.drop(request_id)
        return came

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not balance."""
        if self.used_bytes != sum(held.nbytes for held in self._held.values()):
            raise AssertionError("host KV: the requests' bytes do not add up")
