"""A switch beside the plain copy of its bytes; to a resident model; to one that was loaded beside another's steps."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.weights import begin_load, engine_of, load
from hekaton.engine.interface import StepItem
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Image, ModelSpec, Sampling

SPARE_BYTES = 16 << 20
"""What a device has beside its models: too little for one more."""
PAIR = (("a", "b"), ("b", "a"))
WARM_UP_ROUNDS = 2
GREEDY = Sampling(max_tokens=1, seed=1)
CONTEXT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Copied:
    """Medians."""

    weight_bytes: int
    copy_ms: float
    switch_ms: float
    switch_over_copy: float
    resident_switch_ms: float
    resident_switch_over_step: float
    """Of a decode step of one request."""
    prefetched_exposed_over_copy: float


def measure_copy(spec: ModelSpec, images: dict[str, Image], rounds: int) -> Copied:
    """Switches between two images of one model."""
    with closing(engine_of(spec, images, spec.weight_bytes + SPARE_BYTES)) as engine:
        switches, copies = _alternate(engine, images, rounds)
    with closing(engine_of(spec, images, 2 * spec.weight_bytes + SPARE_BYTES)) as engine:
        binds, steps = _binds(engine, rounds)
        exposed = [_exposed_ms(engine, *pair) for _ in range(rounds) for pair in PAIR]
    switch_ms, copy_ms, bind_ms = median(switches), median(copies), median(binds)
    return Copied(
        spec.weight_bytes,
        copy_ms,
        switch_ms,
        switch_ms / copy_ms,
        bind_ms,
        bind_ms / median(steps),
        median(exposed) / copy_ms,
    )


def timed_ms(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return (time.perf_counter() - started_s) * 1e3


def alternate(rounds: int, *actions: Callable[[], None]) -> list[list[float]]:
    """Times of each action, one after the other in every round, each first in its turn."""
    times: list[list[float]] = [[] for _ in actions]
    order = list(range(len(actions)))
    for _ in range(rounds):
        for index in order:
            times[index].append(timed_ms(actions[index]))
        order = order[1:] + order[:1]
    return times


def _alternate(engine: TransformersEngine, images: dict[str, Image], rounds: int) -> tuple[list[float], list[float]]:
    """Times in ms of switches and of plain copies."""
    sources = {name: torch.from_numpy(np.memmap(image.path, np.uint8, "c")) for name, image in images.items()}
    # Where the weights go: the lowest fit on an empty device.
    place = engine._buffer[: images["a"].nbytes]
    switches: list[float] = []
    copies: list[float] = []
    for round_ in range(rounds + WARM_UP_ROUNDS):
        for model, other in PAIR:
            pair = [(switches, partial(_switch, engine, model, other)), (copies, partial(_copy, sources[model], place))]
            for times, action in pair if round_ % 2 else reversed(pair):
                times.append(timed_ms(action))
            if not torch.equal(place, sources[model]):
                raise RuntimeError("the device does not hold what the image holds")
    return switches[2 * WARM_UP_ROUNDS :], copies[2 * WARM_UP_ROUNDS :]


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def _switch(engine: TransformersEngine, model: str, other: str) -> None:
    engine.evict(other)
    load(engine, model)
    engine.bind(model)


def _binds(engine: TransformersEngine, rounds: int) -> tuple[list[float], list[float]]:
    """Times in ms of switches between resident models, and of decode steps with none."""
    binds: list[float] = []
    steps: list[float] = []
    for name, _ in PAIR:
        load(engine, name)
        _prefill(engine, name)
    for _ in range(rounds + WARM_UP_ROUNDS):
        for name, _ in PAIR:
            binds.append(timed_ms(partial(engine.bind, name)))
            steps.append(timed_ms(partial(_decode, engine, name)))
    return binds[2 * WARM_UP_ROUNDS :], steps[2 * WARM_UP_ROUNDS :]


def _exposed_ms(engine: TransformersEngine, model: str, other: str) -> float:
    """`model` is loaded beside steps of `other`; from the last of them to the moment when the first step can begin."""
    engine.evict(model)
    begin_load(engine, model)
    while True:
        _decode(engine, other)
        started_s = time.perf_counter()
        if engine.finished_loads():
            engine.bind(model)
            return (time.perf_counter() - started_s) * 1e3


def _prefill(engine: TransformersEngine, model: str) -> None:
    if not engine.grow_kv(model, model, CONTEXT_TOKENS + 1):
        raise RuntimeError("KV finds no room on the device")
    engine.step(model, [StepItem(model, tuple(range(CONTEXT_TOKENS)), 0, GREEDY, 0)])


def _decode(engine: TransformersEngine, model: str) -> None:
    """The same token again, which costs as much as the next one."""
    engine.step(model, [StepItem(model, (7,), CONTEXT_TOKENS, GREEDY, 1)])
