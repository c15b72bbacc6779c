"""The real turn loop over the real engine: three architectures on a device that holds one of them at a time."""

import select
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fakes.checkpoints import write_checkpoint
from fakes.tinymodels import TinyModel, image_of, prompt_of
from fakes.turnloop import SettableClock
from hekaton.engine.interface import Sampled, StepItem
from hekaton.engine.messages import (
    AddModel,
    Command,
    Ended,
    Event,
    ImageDropped,
    ImageReady,
    Step,
    Submit,
    WantImage,
)
from hekaton.engine.reference import Comparison
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.engine.turns import TurnLoop
from hekaton.errors import EngineFailed, InvalidCheckpoint
from hekaton.facts import FinishReason, Sampling, Slo
from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import Turn, TurnPolicy, WorkerView

NEW_TOKENS = 40
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1)
LIMIT_S = 60.0
PASS_S = 0.01
"""What a pass of the loop takes on its clock: nobody is ever late, however busy the machine is."""
MAX_PASSES = 100_000
Oracle = Callable[[str, list[int], list[int]], Comparison]


class EveryToken:
    """Another model after every step, whatever it costs."""

    def __init__(self) -> None:
        self._last = ""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        able = sorted(view.demands.keys() & (view.ready | view.resident))
        if not able:
            return None
        stepped = view.running and view.turn_started_s < now_s
        if stepped or self._last not in able:
            self._last = next((model for model in able if model > self._last), able[0])
        ids = tuple(one.request_id for one in view.demands[self._last].requests)
        return Turn(self._last, ids, 0.0, evict=tuple(view.resident - {self._last}))


class CountingEngine(TransformersEngine):
    """Counts how often KV came back from the host."""

    returns = 0

    @property
    def copying(self) -> bool:
        with self._copier._changed:
            return bool(self._copier._jobs)

    def swap_in(self, request_id: str) -> bool:
        began = super().swap_in(request_id)
        self.returns += began
        return began


class SlowBusEngine(CountingEngine):
    """Counts the steps of models whose load is under way."""

    early_steps = 0

    def __init__(self, device: str, device_memory_bytes: int, *, host_kv_memory_bytes: int) -> None:
        super().__init__(
            device, device_memory_bytes, host_kv_memory_bytes=host_kv_memory_bytes, copy_bytes_per_s=20 << 20
        )

    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        self.early_steps += model in self.loading()
        return super().step(model, items)


class ForgetfulHostEngine(CountingEngine):
    """Whatever KV is on the host changes there."""

    def swap_in(self, request_id: str) -> bool:
        self._swaps.settle()
        shape, _ = self._swaps.held(request_id)
        self._host.place(self._host.table(request_id)[0], shape)[9] ^= 1
        return super().swap_in(request_id)


class RealLoop:
    """A turn loop over a transformers engine; plays the worker and the memory service."""

    def __init__(
        self,
        models: dict[str, TinyModel],
        spare_bytes: int,
        policy: TurnPolicy,
        host_kv_bytes: int = 0,
        engine: type[CountingEngine] = CountingEngine,
    ) -> None:
        largest = max(model.image.nbytes for model in models.values())
        self.engine = engine("cpu", largest + spare_bytes, host_kv_memory_bytes=host_kv_bytes)
        self.ended: dict[str, Ended] = {}
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.mapped: set[str] = set()
        self._images = {name: model.image for name, model in models.items()}
        self._pending: list[Command] = []
        self._clock = SettableClock()
        self._loop = TurnLoop(self.engine, policy, self._emit, self._clock, "w", prefill_chunk_tokens=32)
        for name, model in models.items():
            self._loop.handle(AddModel(name, model.prepared.spec, str(model.checkpoint)))

    def submit(self, request_id: str, model: str, prompt: list[int], sampling: Sampling = GREEDY) -> None:
        self._loop.handle(Submit(request_id, 1, 0, model, tuple(prompt), (), sampling, Slo(1.0, 0.05), 0.0))

    def run(self, requests: int) -> None:
        """Until so many requests have ended."""
        for _ in range(MAX_PASSES):
            if len(self.ended) >= requests:
                break
            busy = self._loop.run_once()
            self._clock.sleep(PASS_S)
            pending, self._pending = self._pending, []
            for command in pending:
                self._loop.handle(command)
            if not busy and not pending:
                self._wait()
        assert len(self.ended) == requests
        # A load that nobody needs any more keeps its image until it ends.
        while self.engine.loading():
            self._wait()
            self._loop.run_once()
        self._loop.run_once()
        self._loop.check_integrity()

    def close(self) -> None:
        self.engine.close()

    def _wait(self) -> None:
        """For a copy if one is under way, else for what the loop waits for on its clock."""
        copying = self.engine.copying
        readable, _, _ = select.select([self.engine.fileno()], [], [], LIMIT_S if copying else 0.0)
        wake_s = self._loop.wake_s()
        assert readable or (wake_s is not None and not copying), "nothing will ever happen"
        if not readable and wake_s is not None:
            self._clock.now_s = max(self._clock.now_s, wake_s)

    def _emit(self, event: Event) -> None:
        match event:
            case WantImage(model=model):
                self.mapped.add(model)
                self._pending.append(ImageReady(model, self._images[model]))
            case ImageDropped(model=model):
                self.mapped.remove(model)
            case Step(outputs=outputs):
                for output in outputs:
                    assert output.first_index == len(self.tokens[output.request_id])
                    self.tokens[output.request_id] += output.token_ids
            case Ended(request_id=request_id):
                assert request_id not in self.ended
                self.ended[request_id] = event
            case _:
                pass


@pytest.mark.parametrize("host_kv_bytes", [0, 700_000, 8 << 20], ids=["no-host", "small-host", "host"])
@pytest.mark.parametrize("spare_bytes", [900_000, 250_000], ids=["roomy", "kv-scarce"])
@pytest.mark.parametrize("policy", [EveryToken, lambda: SlackTurns(min_turn_s=0.0)], ids=["every-token", "slack"])
def test_three_architectures_share_a_device_and_every_stream_is_exact(
    models: dict[str, TinyModel],
    oracle: Oracle,
    policy: Callable[[], TurnPolicy],
    spare_bytes: int,
    host_kv_bytes: int,
) -> None:
    names = ("llama", "qwen2", "gpt2")
    loop = RealLoop({name: models[name] for name in names}, spare_bytes, policy(), host_kv_bytes)
    prompts = {f"{name}/{length}": (name, prompt_of(length, 4)) for name in names for length in (4, 33, 70)}
    for request_id, (name, prompt) in prompts.items():
        loop.submit(request_id, name, prompt)
    loop.run(len(prompts))
    for request_id, (name, prompt) in prompts.items():
        assert loop.ended[request_id].finish is FinishReason.LENGTH, loop.ended[request_id].error
        found = oracle(name, prompt, loop.tokens[request_id])
        assert found.first_difference is None, request_id
        assert len(loop.tokens[request_id]) == NEW_TOKENS
    for name in names:
        assert any(loop.ended[one].preemptions for one in prompts if prompts[one][0] == name)
    assert loop.mapped == set()
    assert not loop.engine.returns or host_kv_bytes
    assert loop.engine.returns or not host_kv_bytes or spare_bytes == 900_000
    assert loop.engine.host_kv_bytes() == 0
    loop.close()


def test_kv_that_changed_on_the_host_is_computed_again_and_the_streams_are_exact(
    models: dict[str, TinyModel], oracle: Oracle
) -> None:
    names = ("llama", "qwen2", "gpt2")
    loop = RealLoop({name: models[name] for name in names}, 250_000, EveryToken(), 8 << 20, ForgetfulHostEngine)
    prompts = {f"{name}/{length}": (name, prompt_of(length, 4)) for name in names for length in (4, 33, 70)}
    for request_id, (name, prompt) in prompts.items():
        loop.submit(request_id, name, prompt)
    loop.run(len(prompts))
    assert loop.engine.returns
    for request_id, (name, prompt) in prompts.items():
        assert oracle(name, prompt, loop.tokens[request_id]).first_difference is None, request_id
    loop.close()


def test_the_turn_loop_starts_models_whose_weights_are_on_their_way(
    models: dict[str, TinyModel], oracle: Oracle
) -> None:
    names = ("llama", "qwen2")
    loop = RealLoop({name: models[name] for name in names}, 300_000, SlackTurns(), 0, SlowBusEngine)
    for name in names:
        loop.submit(name, name, prompt_of(33, 4))
    loop.run(len(names))
    assert isinstance(loop.engine, SlowBusEngine)
    assert loop.engine.early_steps >= 2
    for name in names:
        assert loop.ended[name].finish is FinishReason.LENGTH, loop.ended[name].error
        assert oracle(name, prompt_of(33, 4), loop.tokens[name]).first_difference is None
    loop.close()


def test_weights_that_give_nan_end_their_requests_only(models: dict[str, TinyModel], tmp_path: Path) -> None:
    """One token's embedding is not a number; requests without it share steps, and later KV, with one that has it."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen2")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loop = RealLoop({"sick": image_of(checkpoint, tmp_path), "llama": models["llama"]}, 300_000, EveryToken())
    healthy = [token for token in prompt_of(20, 1) if token != 7]
    loop.submit("before", "sick", healthy)
    loop.submit("poison", "sick", [*healthy, 7, 8, 9])
    loop.submit("other", "llama", prompt_of(20, 1))
    loop.run(3)
    loop.submit("after", "sick", healthy)
    loop.run(4)
    assert loop.ended["poison"].error_reason == EngineFailed.reason
    assert "request poison" in loop.ended["poison"].error
    assert [loop.ended[one].finish for one in ("before", "other", "after")] == [FinishReason.LENGTH] * 3
    assert loop.tokens["before"] == loop.tokens["after"]
    loop.close()


def test_a_model_whose_image_is_gone_fails_its_requests_and_others_go_on(models: dict[str, TinyModel]) -> None:
    llama, gone = models["llama"], models["qwen2"]
    gone = replace(gone, image=replace(gone.image, path="/nonexistent/image"))
    loop = RealLoop({"llama": llama, "gone": gone}, 900_000, SlackTurns())
    loop.submit("lost", "gone", [1, 2, 3])
    loop.submit("served", "llama", [1, 2, 3])
    loop.run(2)
    loop.submit("lost too", "gone", [1, 2, 3])
    loop.run(3)
    assert loop.ended["served"].finish is FinishReason.LENGTH
    for request_id in ("lost", "lost too"):
        assert loop.ended[request_id].error_reason == InvalidCheckpoint.reason
        assert "/nonexistent/image" in loop.ended[request_id].error
    assert loop.mapped == set()
    loop.close()
