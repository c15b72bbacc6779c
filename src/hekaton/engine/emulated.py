"""An engine without tensors: it keeps the books of a real one and takes the time that a profile says."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hekaton.engine.emulated_host import EmulatedHost
from hekaton.engine.emulated_loads import EmulatedLoads
from hekaton.engine.interface import ExportResult, LoadResult, Sampled, StepItem, SwapResult
from hekaton.engine.profiles import emulated_costs
from hekaton.errors import EngineFailed, ModelTooLarge
from hekaton.facts import Image, ModelSpec, Parcel, Sampling
from hekaton.policy.types import ModelCosts

BLOCK_TOKENS = 16
MAX_CATCH_UP_S = 0.02
"""A step that follows another within this time of the profile counts from the other's deadline: lateness does not add
up."""
_MASK = (1 << 64) - 1


def emulated_token(model: str, seed: int, position: int, spec: ModelSpec, choice: int = 0) -> int:
    """The token that an emulated model samples: a hash of model, seed, choice and position, never an end token."""
    mixed = seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + choice * 0xD6E8FEB86659FD93
    mixed = (mixed + zlib.crc32(model.encode())) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0x94D049BB133111EB) & _MASK
    ends = sorted(set(spec.eos_token_ids))
    token = (mixed >> 31) % (spec.vocab_size - len(ends))
    for end in ends:
        token += token >= end
    return token


def _sampled(model: str, sampling: Sampling, position: int, spec: ModelSpec) -> Sampled:
    return Sampled(emulated_token(model, sampling.seed, position, spec, sampling.choice))


@dataclass(frozen=True, slots=True)
class _Kv:
    model: str
    tokens: int
    nbytes: int


class EmulatedEngine:
    """One emulated accelerator: serial steps, one serial copy engine beside them, one memory for weights and KV.

    `device` is a name of `profiles.DEVICES`. `time_scale` stretches (> 1) or shortens every time of the profile.
    """

    def __init__(
        self,
        device: str,
        device_memory_bytes: int,
        *,
        bandwidth_bytes_per_s: float = 16e9,
        time_scale: float = 1.0,
        host_kv_memory_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = f"emulated:{device}"
        self.device_memory_bytes = device_memory_bytes
        self._profile = device
        self._bandwidth = bandwidth_bytes_per_s
        self._time_scale = time_scale
        self._clock = clock
        self._sleep = sleep
        self._specs: dict[str, ModelSpec] = {}
        self._costs: dict[str, ModelCosts] = {}
        self._resident: set[str] = set()
        self._loads = EmulatedLoads()
        self._finished: list[LoadResult] = []
        self._kv: dict[str, _Kv] = {}
        self.host_kv_memory_bytes = host_kv_memory_bytes
        self._host = EmulatedHost(host_kv_memory_bytes, bandwidth_bytes_per_s / time_scale)
        self._returned: list[SwapResult] = []
        self._exports: list[tuple[float, ExportResult]] = []
        """With when they end, in that order."""
        self._may_export = False
        self._weights_bytes = 0
        self._kv_bytes = 0
        self._step_deadline_s = 0.0

    def add_model(self, name: str, spec: ModelSpec, source: str, costs: ModelCosts | None = None) -> None:
        block = spec.kv_bytes_per_token * BLOCK_TOKENS
        if spec.weight_bytes + block > self.device_memory_bytes:
            raise ModelTooLarge(
                f"model {name} needs {spec.weight_bytes} bytes of weights and {block} bytes a KV block; "
                f"the device has {self.device_memory_bytes} bytes"
            )
        self._specs[name] = spec
        self._costs[name] = emulated_costs(self._profile, spec, source, self._bandwidth).slowed(self._time_scale)

    def remove_model(self, name: str) -> None:
        self.evict(name)
        self._specs.pop(name, None)
        self._costs.pop(name, None)

    def provide_image(self, model: str, image: Image | None) -> None:
        """Nothing to map: emulated weights have no bytes."""

    def resident(self) -> frozenset[str]:
        self._settle()
        return frozenset(self._resident)

    def loading(self) -> frozenset[str]:
        self._settle()
        return frozenset(self._loads.models)

    def startable(self) -> frozenset[str]:
        """As in the simulator, a step begins when all weights are there."""
        return self.resident()

    def hurry(self, model: str) -> None:
        """As in the simulator, loads keep their order."""

    def begin_load(self, model: str) -> bool:
        nbytes = self._specs[model].weight_bytes
        if model in self.resident() | self.loading():
            return True
        if nbytes > self._free_bytes():
            return False
        self._weights_bytes += nbytes
        self._loads.add(model, self._costs[model].load_s, self._host.in_free_s, self._clock())
        return True

    def evict(self, model: str) -> None:
        self._settle()
        if model in self._resident:
            self._resident.remove(model)
            self._weights_bytes -= self._specs[model].weight_bytes
        elif model in self.loading():
            self._weights_bytes -= self._specs[model].weight_bytes
            self._loads.cancel(model, self._host.in_free_s, self._clock())

    def finished_loads(self) -> list[LoadResult]:
        self._settle()
        finished, self._finished = self._finished, []
        return finished

    def fileno(self) -> int | None:
        return None

    def next_event_s(self) -> float | None:
        if self._finished or self._returned:
            return self._clock()
        exports_s = [end_s for end_s, _ in self._exports[:1]]
        return min([*self._loads.ends_s(), *exports_s, *self._host.ends_s()], default=None)

    def grow_kv(self, request_id: str, model: str, tokens: int) -> bool:
        held = self._kv.get(request_id)
        blocks = -(-tokens // BLOCK_TOKENS)
        nbytes = blocks * BLOCK_TOKENS * self._specs[model].kv_bytes_per_token
        grown = nbytes - (held.nbytes if held else 0)
        if grown > self._free_bytes():
            return False
        if grown > 0:
            self._kv[request_id] = _Kv(model, blocks * BLOCK_TOKENS, nbytes)
            self._kv_bytes += grown
        return True

    def swap_out(self, request_id: str, tokens: int) -> bool:
        model = self._kv[request_id].model
        nbytes = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * self._specs[model].kv_bytes_per_token
        if not self._host.take(request_id, model, tokens, nbytes, self._clock()):
            return False
        self._leave_device(request_id)
        return True

    def swap_in(self, request_id: str) -> bool:
        held = self._host.held(request_id)
        if not self.grow_kv(request_id, held.model, held.tokens):
            return False
        self._settle()
        now = self._clock()
        self._loads.delay(self._host.bring(request_id, now), now)
        return True

    def finished_swaps(self) -> list[SwapResult]:
        self._settle()
        returned, self._returned = self._returned, []
        return returned

    def drop_kv(self, request_id: str) -> None:
        self._host.drop(request_id)
        self._leave_device(request_id)

    def export_to(self, directory: Path) -> None:
        """Nothing is written there: emulated KV has no bytes."""
        self._may_export = True

    def export_kv(self, request_id: str, epoch: int, model: str, token_ids: Sequence[int]) -> bool:
        if not self._may_export:
            return False
        tokens = len(token_ids)
        nbytes = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * self._specs[model].kv_bytes_per_token
        now = self._clock()
        held = self._host.held(request_id).ready_s if self._host.holds(request_id) else None
        end_s = self._host.depart(nbytes, now) if held is None else max(held, now)
        self.drop_kv(request_id)
        self._exports.append((end_s, ExportResult(request_id, epoch, Parcel("", tokens, nbytes))))
        self._exports.sort(key=lambda export: export[0])
        return True

    def finished_exports(self) -> list[ExportResult]:
        now = self._clock()
        finished = [export for end_s, export in self._exports if end_s <= now]
        del self._exports[: len(finished)]
        return finished

    def import_kv(self, request_id: str, model: str, parcel: Parcel, token_ids: Sequence[int]) -> int:
        tokens = min(parcel.tokens, len(token_ids) - 1)
        if tokens <= 0 or not self._host.adopt(request_id, model, tokens, parcel.nbytes, self._clock()):
            return 0
        return tokens

    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        if model not in self.resident():
            raise EngineFailed(f"model {model} is not on the device: load it before a step")
        for item in items:
            held = self._kv.get(item.request_id)
            if held is None or held.tokens < item.start + len(item.token_ids):
                raise EngineFailed(f"request {item.request_id} has no KV for its tokens: grow it before a step")
        self._spend(self._step_s(model, items))
        spec = self._specs[model]
        return [_sampled(model, item.sampling, item.position, spec) if item.sampling else None for item in items]

    def costs(self, model: str) -> ModelCosts:
        return self._costs[model]

    def measured(self, model: str) -> bool:
        """They are the profile's."""
        return True

    def learn(self, model: str, costs: ModelCosts) -> None:
        """There is nothing to learn."""

    def weights_bytes(self) -> int:
        return self._weights_bytes

    def kv_bytes(self) -> int:
        return self._kv_bytes

    def host_kv_bytes(self) -> int:
        return self._host.used_bytes

    def check_integrity(self) -> None:
        self._host.check_integrity()
        on_device = [*self._resident, *self._loads.models]
        weights = sum(self._specs[model].weight_bytes for model in on_device)
        kv = sum(held.nbytes for held in self._kv.values())
        balanced = weights == self._weights_bytes and kv == self._kv_bytes and len(set(on_device)) == len(on_device)
        if not balanced or weights + kv > self.device_memory_bytes:
            raise AssertionError(
                f"the device's books say {self._weights_bytes} + {self._kv_bytes} bytes of {self.device_memory_bytes}, "
                f"its holders {weights} + {kv}"
            )

    def close(self) -> None:
        """Nothing to give back."""

    def _leave_device(self, request_id: str) -> None:
        held = self._kv.pop(request_id, None)
        if held:
            self._kv_bytes -= held.nbytes

    def _free_bytes(self) -> int:
        return self.device_memory_bytes - self._weights_bytes - self._kv_bytes

    def _settle(self) -> None:
        """Loads whose time has come are resident, and KV whose time has come is back."""
        now = self._clock()
        self._returned += [SwapResult(request_id) for request_id in self._host.returned(now)]
        for load in self._loads.ended(now):
            self._resident.add(load.model)
            nbytes = self._specs[load.model].weight_bytes
            self._finished.append(LoadResult(load.model, load.end_s - load.asked_s, nbytes))

    def _step_s(self, model: str, items: Sequence[StepItem]) -> float:
        """Time of a step that mixes decodes and chunks of prompts."""
        decodes = [item for item in items if item.start and len(item.token_ids) == 1]
        fed = sum(len(item.token_ids) for item in items) - len(decodes)
        return self._costs[model].mixed_s(fed, len(decodes), sum(item.start + 1 for item in decodes))

    def _spend(self, duration_s: float) -> None:
        now = self._clock()
        late_s = now - self._step_deadline_s
        start = self._step_deadline_s if late_s <= MAX_CATCH_UP_S * self._time_scale else now
        self._step_deadline_s = start + duration_s
        if self._step_deadline_s > now:
            self._sleep(self._step_deadline_s - now)
