"""Real models on one device, through transformers and torch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor

from hekaton.engine import attention
from hekaton.engine.attention import Feed
from hekaton.engine.compaction import gather
from hekaton.engine.copier import Copier, CopyJob, Piece, chunks
from hekaton.engine.device import Extent, Extents
from hekaton.engine.forward import Forward
from hekaton.engine.grammar import Constraints
from hekaton.engine.hostkv import HostKv
from hekaton.engine.hostpages import HostPages
from hekaton.engine.image import ALIGN_BYTES
from hekaton.engine.interface import ExportResult, LoadResult, Sampled, StepItem, SwapResult
from hekaton.engine.known import KnownModel
from hekaton.engine.kv import BLOCK_TOKENS, BlockShape, KvCache
from hekaton.engine.meter import Meter
from hekaton.engine.parcel import Manifest, ParcelReader, ParcelWriter, keys_of
from hekaton.engine.sampler import sample
from hekaton.engine.skeleton import Skeleton
from hekaton.engine.swaps import Swaps
from hekaton.engine.weights import gated, move
from hekaton.errors import EngineFailed, KvLost, ModelTooLarge
from hekaton.facts import Image, ModelSpec, Parcel
from hekaton.policy.types import ModelCosts

MAX_SLAB_BYTES = 16 << 20
SLABS_A_DEVICE = 32
"""No slab is larger than this part of the device."""


class TransformersEngine:
    """The `Engine` protocol on a CPU or CUDA device. One thread calls everything."""

    def __init__(
        self,
        device: str,
        device_memory_bytes: int,
        threads: int = 1,
        host_kv_memory_bytes: int = 0,
        host_kv_dir: Path | None = None,
        copy_bytes_per_s: int = 0,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self.device_memory_bytes = device_memory_bytes = device_memory_bytes // ALIGN_BYTES * ALIGN_BYTES
        self._device = torch.device(device)
        # Written once, so that no later copy pays for fresh pages.
        self._buffer = torch.empty(device_memory_bytes, dtype=torch.uint8, device=self._device).zero_()
        self._memory = Extents(device_memory_bytes)
        self._kv = KvCache(self._memory, min(MAX_SLAB_BYTES, device_memory_bytes // SLABS_A_DEVICE))
        self._host = HostKv(host_kv_dir, host_kv_memory_bytes)
        self.host_kv_memory_bytes = self._host.limit_bytes
        self._copier = Copier(self._device, copy_bytes_per_s)
        self._pages = HostPages(self._device)
        self._swaps = Swaps(self._kv, self._buffer, self._host, self._copier)
        self._loads: list[LoadResult] = []
        self._returns: list[SwapResult] = []
        self._exports: list[ExportResult] = []
        self._parcels: Path | None = None
        self._models: dict[str, KnownModel] = {}
        self._forward = Forward(self._device, self._buffer)
        self._constraints = Constraints(lambda model: self._models[model].vocabulary())

    def add_model(self, name: str, spec: ModelSpec, source: str, costs: ModelCosts | None = None) -> None:
        least = spec.weight_bytes + BLOCK_TOKENS * spec.kv_bytes_per_token
        if least > self.device_memory_bytes:
            raise ModelTooLarge(
                f"model {name} needs {least} bytes of device memory, {self.device} has {self.device_memory_bytes}"
            )
        # The library imports an architecture when it is first asked for it, which takes seconds: not in a turn.
        getattr(transformers, spec.architecture, None)
        self._models[name] = KnownModel(name, spec, Meter(spec, costs))

    def remove_model(self, name: str) -> None:
        self.evict(name)
        self.provide_image(name, None)
        self._constraints.forget(name)
        del self._models[name]

    def provide_image(self, model: str, image: Image | None) -> None:
        """Raises InvalidCheckpoint if the image is not one of this model."""
        known = self._models[model]
        if known.source is not None:
            self._pages.release(known.source)
        known.image, known.source = image, None
        if image is None:
            return
        known.provide(image, self._forward.skeleton(image.config_json, known.spec.dtype), self._buffer)

    def resident(self) -> frozenset[str]:
        return frozenset(name for name, model in self._models.items() if model.extent and not model.job)

    def loading(self) -> frozenset[str]:
        return frozenset(name for name, model in self._models.items() if model.job)

    def startable(self) -> frozenset[str]:
        begun = (name for name, model in self._models.items() if model.job and model.job.done)
        return self.resident().union(begun)

    def hurry(self, model: str) -> None:
        job = self._models[model].job
        if job is not None:
            self._copier.hurry(job)

    def begin_load(self, model: str) -> bool:
        known = self._models[model]
        if known.extent is not None:
            return True
        if known.source is None:
            raise EngineFailed(f"model {model} has no image to load from")
        extent = self._allocate(known.source.numel())
        if extent is None:
            return False
        self._end_kernels()
        target = self._buffer[extent.start : extent.end]
        known.extent, known.job = extent, CopyJob(name=model, pieces=self._pieces(known.source, target))
        self._copier.submit(known.job)
        # While the copy runs.
        known.look_at(extent.start)
        return True

    def evict(self, model: str) -> None:
        known = self._models[model]
        if known.job is not None:
            self._copier.cancel(known.job)
            known.job = None
        if known.extent is not None:
            self._memory.free(known.extent)
            known.extent = None
            if known.skeleton is not None and known.skeleton.bound == model:
                known.skeleton.bound = ""

    def finished_loads(self) -> list[LoadResult]:
        self._collect()
        loads, self._loads = self._loads, []
        self._tell_rest()
        return loads

    def finished_swaps(self) -> list[SwapResult]:
        self._collect()
        returns, self._returns = self._returns, []
        self._tell_rest()
        return returns

    def finished_exports(self) -> list[ExportResult]:
        self._collect()
        exports, self._exports = self._exports, []
        self._tell_rest()
        return exports

    def fileno(self) -> int:
        return self._copier.fileno()

    def next_event_s(self) -> float | None:
        return None

    def grow_kv(self, request_id: str, model: str, tokens: int) -> bool:
        shape = self._models[model].shape
        if shape is None:
            raise EngineFailed(f"model {model} was never loaded")
        fresh = self._grow(request_id, shape, tokens)
        if fresh:
            self._swaps.await_departed(fresh, shape)
            # What lay there may read as NaN, which no mask of the attention hides.
            for block in fresh:
                self._forward.pages(shape).blocks[block].zero_()
        return fresh is not None

    def drop_kv(self, request_id: str) -> None:
        self._constraints.drop(request_id)
        self._swaps.drop(request_id)
        self._kv.drop(request_id)

    def swap_out(self, request_id: str, tokens: int) -> bool:
        self._end_kernels()
        return self._swaps.out(request_id, tokens)

    def swap_in(self, request_id: str) -> bool:
        if self._grow(request_id, *self._swaps.held(request_id)) is None:
            return False
        self._end_kernels()
        self._swaps.bring(request_id)
        return True

    def export_to(self, directory: Path) -> None:
        self._parcels = directory

    def export_kv(self, request_id: str, epoch: int, model: str, token_ids: Sequence[int]) -> bool:
        if self._parcels is None:
            return False
        digest, shape = self._models[model].spec.digest, self._swaps.shape(request_id)
        manifest = Manifest(request_id, epoch, digest, shape, len(token_ids), keys_of(token_ids))
        try:
            writer = ParcelWriter(self._parcels, manifest)
        except OSError:
            return False
        self._end_kernels()
        self._swaps.send(request_id, writer)
        return True

    def import_kv(self, request_id: str, model: str, parcel: Parcel, token_ids: Sequence[int]) -> int:
        path = Path(parcel.path)
        try:
            reader = ParcelReader(path)
        except KvLost:
            path.unlink(missing_ok=True)
            return 0
        path.unlink(missing_ok=True)
        manifest = reader.manifest
        tokens = manifest.covers(token_ids) if manifest.is_of(request_id, self._models[model].spec) else 0
        if not tokens or not self._swaps.receive(request_id, reader, tokens):
            reader.close()
            return 0
        return tokens

    def bind(self, model: str) -> tuple[Skeleton, BlockShape]:
        """Makes a model on the device the one that its module tree computes; nothing is copied. `step` calls it."""
        known = self._models[model]
        if known.skeleton is None or known.shape is None or known.extent is None:
            raise EngineFailed(f"model {model} is not on the device")
        if known.skeleton.bound != model:
            known.skeleton.bind(model, known.parameters)
        return known.skeleton, known.shape

    @torch.inference_mode()
    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        known = self._models[model]
        if known.job is not None:
            with gated(known.gates, partial(self._await_weights, known, known.job)):
                return self._step(known, items)
        started_s = time.monotonic()
        tokens = self._step(known, items)
        fed, seen = sum(len(item.token_ids) for item in items), sum(item.start + 1 for item in items)
        known.meter.stepped(fed, len(items), time.monotonic() - started_s, seen)
        return tokens

    def _step(self, known: KnownModel, items: Sequence[StepItem]) -> list[Sampled | None]:
        feeds = [Feed(item.start, len(item.token_ids), self._kv.table(item.request_id)) for item in items]
        packed = attention.order(feeds)
        ordered = [items[index] for index in packed]
        logits = self._forward.logits(*self.bind(known.name), ordered, [feeds[index] for index in packed])
        sampled = [index for index in packed if items[index].sampling is not None]
        tokens: list[Sampled | None] = [None] * len(items)
        if not sampled:
            return tokens
        sampling = [items[index] for index in sampled]
        chosen = sample(logits, sampling, self._constraints.forbidden(known.name, sampling))
        for index, token in zip(sampled, chosen, strict=True):
            tokens[index] = token
        return tokens

    def costs(self, model: str) -> ModelCosts:
        known = self._models[model]
        costs = known.meter.costs()
        swap_s = self._swaps.token_s(known.shape) if known.shape else 0.0
        return replace(costs, swap_s_per_token=swap_s) if swap_s else costs

    def measured(self, model: str) -> bool:
        return self._models[model].meter.measured

    def learn(self, model: str, costs: ModelCosts) -> None:
        self._models[model].meter.learn(costs)

    def weights_bytes(self) -> int:
        return sum(model.extent.nbytes for model in self._models.values() if model.extent)

    def kv_bytes(self) -> int:
        return self._kv.slab_bytes

    def host_kv_bytes(self) -> int:
        return self._host.assigned_bytes

    def check_integrity(self) -> None:
        self._memory.check_integrity()
        self._kv.check_integrity()
        self._host.check_integrity()
        used = self.device_memory_bytes - self._memory.free_bytes
        if used != self.weights_bytes() + self.kv_bytes():
            raise AssertionError("device memory: extents are neither weights nor KV")

    def close(self) -> None:
        for name in list(self._models):
            self.remove_model(name)
        self._copier.close()
        self._swaps.close()
        self._host.close()

    def _collect(self) -> None:
        """Books the copies that have ended."""
        for job in self._copier.results():
            model = self._models.get(job.name)
            # A copy may have ended just before it was cancelled.
            if model is not None and model.job is job:
                model.job = None
                model.meter.loaded(job.duration_s)
                self._loads.append(LoadResult(job.name, job.duration_s, model.spec.weight_bytes, job.error))
                if job.error:
                    self.evict(job.name)
                continue
            ended = self._swaps.ended(job)
            if isinstance(ended, ExportResult):
                self._exports.append(ended)
            elif ended:
                self._returns.append(ended)
                if job.error:
                    self._kv.drop(job.name)

    def _tell_rest(self) -> None:
        """Who asks for results of one kind must wake again for those of the others that came meanwhile."""
        if self._loads or self._returns or self._exports:
            self._copier.wake()

    def _await_weights(self, known: KnownModel, job: CopyJob, nbytes: int) -> None:
        """Returns when the image's first `nbytes` bytes are on the device.

        The copy thread says so when they are there, which is right for CUDA too. A wait on its stream for an event that
        was recorded behind the piece would let kernels be launched meanwhile; its place is here.
        """
        pieces = -(-nbytes // self._copier.piece_bytes)
        self._copier.wait(job, pieces)
        if job.done < pieces:
            raise EngineFailed(f"loading {known.name} failed: {job.error}")

    def _pieces(self, source: Tensor, target: Tensor) -> Iterator[Piece]:
        self._pages.register(source)
        yield from chunks(source, target, self._copier.piece_bytes)

    def _end_kernels(self) -> None:
        """Before a copy: kernels that are still under way may use its bytes."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _grow(self, request_id: str, shape: BlockShape, tokens: int) -> list[int] | None:
        fresh = self._kv.grow(request_id, shape, tokens)
        if fresh is None and self._compact(self._kv.missing_bytes(request_id, shape, tokens)):
            return self._kv.grow(request_id, shape, tokens)
        return fresh

    def _allocate(self, nbytes: int) -> Extent | None:
        extent = self._memory.allocate(nbytes)
        return self._memory.allocate(nbytes) if extent is None and self._compact(nbytes) else extent

    def _compact(self, nbytes: int) -> bool:
        """Brings what is free together until it holds `nbytes` bytes. False if there are not so many."""
        if self._memory.free_bytes + self._kv.unused_bytes < nbytes:
            return False
        self._swaps.settle()
        still = [model for model in self._models.values() if model.extent and not model.job]
        extents = [model.extent for model in still if model.extent]
        moved = gather(self._memory, self._kv, extents, nbytes, partial(move, self._buffer))
        for model in still:
            if model.extent in moved:
                model.extent = moved[model.extent]
                model.look_at(model.extent.start)
        return self._memory.largest_free_bytes >= nbytes
