"""A simulated host, which several devices share: memory for KV and for weights, and one disk behind it."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from hekaton.errors import InvalidArgument

DEVICES_A_HOST = 8


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Of one host. By default it holds the weights of every model."""

    kv_bytes: float = 320e9
    weights_bytes: float = math.inf
    disk_bytes_per_s: float = 3e9

    def __post_init__(self) -> None:
        if not (self.kv_bytes >= 0 and self.weights_bytes >= 0 and self.disk_bytes_per_s > 0):
            raise InvalidArgument("a host has memory of at least 0 bytes for KV and for weights, and a disk that reads")


class Host:
    """Keeps the books. Weights that are not there are read from disk, one model at a time; the least used one goes."""

    def __init__(self, settings: HostSettings, weight_bytes: Mapping[str, int]) -> None:
        self.kv_bytes = 0
        self.misses = 0
        self._settings = settings
        self._weight_bytes = weight_bytes
        self._disk_free_s = 0.0
        self._held_bytes = 0
        self._ready_s: OrderedDict[str, float] = OrderedDict()
        """When a model's weights are, or were, all there; the least recently asked for first."""
        for model, nbytes in sorted(weight_bytes.items()):
            if self._held_bytes + nbytes <= settings.weights_bytes:
                self._hold(model, 0.0)

    def take(self, nbytes: int) -> bool:
        """Room for KV. False if there is none."""
        if self.kv_bytes + nbytes > self._settings.kv_bytes:
            return False
        self.kv_bytes += nbytes
        return True

    def free(self, nbytes: int) -> None:
        self.kv_bytes -= nbytes

    def weights_at_s(self, model: str, now_s: float) -> float:
        """When the weights of a model are in host memory. Begins to read them if they are not."""
        if model in self._ready_s:
            self._ready_s.move_to_end(model)
            return self._ready_s[model]
        self.misses += 1
        nbytes = self._weight_bytes[model]
        while self._ready_s and self._held_bytes + nbytes > self._settings.weights_bytes:
            gone, _ = self._ready_s.popitem(last=False)
            self._held_bytes -= self._weight_bytes[gone]
        self._disk_free_s = max(now_s, self._disk_free_s) + nbytes / self._settings.disk_bytes_per_s
        self._hold(model, self._disk_free_s)
        return self._disk_free_s

    def _hold(self, model: str, ready_s: float) -> None:
        self._ready_s[model] = ready_s
        self._held_bytes += self._weight_bytes[model]
