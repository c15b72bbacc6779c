"""Tiny real models, from checkpoint to image, and a driver that takes a real engine through any schedule."""

import os
import select
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fakes.checkpoints import write_checkpoint
from hekaton.engine.build import build
from hekaton.engine.image import Prepared
from hekaton.engine.interface import StepItem
from hekaton.engine.live import LiveRequest
from hekaton.engine.messages import Submit
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, Logprobs, Parcel, Sampling, Slo

DEVICE = os.environ.get("HEKATON_TEST_DEVICE", "cpu")
"""That engines of the tests run on: cpu, or cuda where there is one."""
LOAD_TIMEOUT_S = 30.0
WIDE: dict[str, dict[str, object]] = {"gpt2": {"n_inner": 512}}
"""Most of a model in its weights, so that two do not fit where one and the KV of both do."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    checkpoint: Path
    prepared: Prepared
    image: Image


def prepare(directory: Path, architecture: str, dtype: str = "float32", seed: int = 1, **changes: object) -> TinyModel:
    """A checkpoint with random weights and its image, both in `directory`."""
    fields = {**WIDE.get(architecture, {"intermediate_size": 512}), **changes}
    checkpoint = write_checkpoint(directory / "checkpoint", architecture, seed, **fields)
    return image_of(checkpoint, directory, dtype)


def image_of(checkpoint: Path, out: Path, dtype: str = "float32") -> TinyModel:
    prepared = build(str(checkpoint), dtype, out, lambda done, total: None)
    path = str(out / f"{prepared.spec.digest}.img")
    return TinyModel(
        checkpoint, prepared, Image(path, prepared.spec.weight_bytes, prepared.tensors, prepared.config_json)
    )


def engine_for(models: Mapping[str, TinyModel], spare_bytes: int, host_kv_bytes: int = 0) -> TransformersEngine:
    """An engine that knows the models; its device holds the largest of them and `spare_bytes`."""
    largest = max(model.image.nbytes for model in models.values())
    engine = TransformersEngine(DEVICE, largest + spare_bytes, host_kv_memory_bytes=host_kv_bytes)
    for name, model in models.items():
        engine.add_model(name, model.prepared.spec, str(model.checkpoint))
        engine.provide_image(name, model.image)
    return engine


def switch(engine: TransformersEngine, model: str) -> None:
    """Makes `model` resident, at the expense of all others if need be."""
    if model in engine.resident():
        return
    if not engine.begin_load(model):
        for other in engine.resident() | engine.loading():
            engine.evict(other)
        assert engine.begin_load(model)
    wait_for_load(engine, model)


def wait_for_load(engine: TransformersEngine, model: str) -> None:
    while model in engine.loading():
        assert select.select([engine.fileno()], [], [], LOAD_TIMEOUT_S)[0], "the load never ended"
        assert all(not load.error for load in engine.finished_loads())
    assert model in engine.resident()


class Driver:
    """Plays the turn loop: remembers every request, and steps whom it is told to."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.requests: dict[str, LiveRequest] = {}
        self.logprobs: dict[str, list[Logprobs]] = defaultdict(list)
        self.lost: list[str] = []
        """Whose KV came back in no state to be used."""

    def submit(self, request_id: str, model: str, prompt: Sequence[int], sampling: Sampling) -> None:
        command = Submit(request_id, 1, 0, model, tuple(prompt), (), sampling, Slo(1.0, 1.0), 0.0)
        self.requests[request_id] = LiveRequest.of(command, 512, 0.0)

    def tokens(self, request_id: str) -> list[int]:
        return self.requests[request_id].produced

    def unfinished(self, model: str) -> list[str]:
        return [one.request_id for one in self.requests.values() if one.model == model and not one.finish]

    def items(self, request_ids: Iterable[str], chunk: int) -> list[StepItem]:
        """What these requests feed next, `chunk` tokens each at most; there must be room for their KV."""
        items = []
        for request_id in request_ids:
            one = self.requests[request_id]
            count = min(one.pending, chunk)
            assert self.engine.grow_kv(request_id, one.model, one.computed + count)
            sampling = one.sampling if count == one.pending else None
            tokens, position = one.tokens(count), len(one.produced)
            items.append(StepItem(request_id, tokens, one.computed, sampling, position, one.prompt, one.produced))
        return items

    def step(self, model: str, request_ids: Sequence[str], chunk: int = 512) -> None:
        """Switches to `model` if need be and makes one step of the given requests of it."""
        switch(self.engine, model)
        self.fetch_kv(request_ids)
        items = self.items(request_ids, chunk)
        if not items:
            return
        for item, sampled in zip(items, self.engine.step(model, items), strict=True):
            request = self.requests[item.request_id]
            request.computed += len(item.token_ids)
            if sampled is not None:
                request.produced.append(sampled.token_id)
                if sampled.logprobs:
                    self.logprobs[item.request_id].append(sampled.logprobs)

    def drop_kv(self, request_id: str) -> None:
        """All of its tokens are computed again when it runs next."""
        self.engine.drop_kv(request_id)
        self.requests[request_id].start_over()

    def swap_out(self, request_id: str) -> bool:
        """Its KV goes to the host, if it has any and the host has room."""
        request = self.requests[request_id]
        if not request.computed or not self.engine.swap_out(request_id, request.computed):
            return False
        request.swapped()
        return True

    def fetch_kv(self, request_ids: Sequence[str]) -> None:
        """Brings what is on the host back to the device."""
        coming = {request_id for request_id in request_ids if self.requests[request_id].host_tokens}
        for request_id in coming:
            assert self.engine.swap_in(request_id)
        while coming:
            assert select.select([self.engine.fileno()], [], [], LOAD_TIMEOUT_S)[0], "the copy never ended"
            for swap in self.engine.finished_swaps():
                coming.remove(swap.request_id)
                request = self.requests[swap.request_id]
                self.lost += [swap.request_id] * bool(swap.error)
                (request.start_over if swap.error else request.fetched)()

    def hand_over(self, request_id: str, taker: "Driver", spoil: Callable[[Path], None] = lambda path: None) -> int:
        """A request goes on at another engine, with its KV if that arrives: of how many tokens.

        Both engines make parcels in one directory. `spoil` may change the parcel on its way.
        """
        request = self.requests.pop(request_id)
        known, context = request.known(request.total), request.context
        taker.requests[request_id] = request
        exported = context and self.engine.export_kv(request_id, 1, request.model, known[:context])
        self.engine.drop_kv(request_id)
        request.start_over()
        if exported and (parcel := self._exported()):
            spoil(Path(parcel.path))
            request.host_tokens = taker.engine.import_kv(request_id, request.model, parcel, known)
            assert not Path(parcel.path).exists()
        return request.host_tokens

    def _exported(self) -> Parcel | None:
        while not (exports := self.engine.finished_exports()):
            assert select.select([self.engine.fileno()], [], [], LOAD_TIMEOUT_S)[0], "the parcel never left"
        (export,) = exports
        assert bool(export.parcel) != bool(export.error)
        return export.parcel

    def finish(self, models: Sequence[str]) -> None:
        """Runs everything to its end, with a switch after every step."""
        while any(self.unfinished(model) for model in models):
            for model in models:
                self.step(model, self.unfinished(model))

    def close(self) -> None:
        """Ends all requests; nothing may be left on the device."""
        for request_id in self.requests:
            self.engine.drop_kv(request_id)
        for model in self.engine.resident():
            self.engine.evict(model)
        self.engine.check_integrity()
        assert self.engine.kv_bytes() == self.engine.weights_bytes() == 0
        self.engine.close()


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, 256, (length,), generator=generator).tolist()
