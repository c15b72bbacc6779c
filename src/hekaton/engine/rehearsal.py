"""A model's first use, before anybody waits for it.

While there is nothing else to do, each model that is new is taken through its paces once: its image is mapped, which
builds its module tree and imports its architecture, and if nobody has measured its costs on such a device, its weights
are loaded, a few steps are timed, and some KV goes to the host. Then it leaves the device again. A request that comes
meanwhile ends it; it begins anew later.
"""

from collections.abc import Callable, Generator
from statistics import median

from hekaton.engine.images import Images
from hekaton.engine.interface import Engine, StepItem
from hekaton.errors import EngineFailed
from hekaton.facts import ModelSpec, Sampling
from hekaton.policy.types import ModelCosts

PREFIX = "rehearsal/"
"""Of request ids; those of clients hold no slash."""
GREEDY = Sampling(max_tokens=1, seed=1)
BATCH = 8
SHORT_TOKENS, LONG_TOKENS = 16, 256
TIMES, BUDGET_S = 3, 0.5
"""A step is timed so often, or until it has taken so long."""
LEAST_S = 1e-7
Course = Generator[bool]
"""Yields after each step, and where it has to wait: whether there is more to do at once."""


class Rehearsal:
    """One model after the other."""

    def __init__(self, engine: Engine, images: Images, specs: dict[str, ModelSpec], clock: Callable[[], float]) -> None:
        self._engine = engine
        self._images = images
        self._specs = specs
        self._clock = clock
        self._waiting: list[str] = []
        self._course: Course | None = None
        self._learned: set[str] = set()

    @property
    def model(self) -> str:
        """Whose turn it is, or empty."""
        return self._waiting[0] if self._course is not None else ""

    def add(self, model: str) -> None:
        if model not in self._waiting:
            self._waiting.append(model)

    def know(self, model: str) -> None:
        """It is new here, but somebody may have measured it."""
        if self._engine.measured(model):
            self._learned.add(model)

    def remove(self, model: str) -> None:
        """It has been removed, or cannot be used."""
        if model == self.model:
            self.interrupt()
        if model in self._waiting:
            self._waiting.remove(model)

    def interrupt(self) -> None:
        """Somebody needs the engine. What has been begun is undone, but for a load that may be of use."""
        if self._course is not None:
            self._course.close()
            self._course = None

    def advance(self) -> bool:
        """Goes on, by a step at most. True if there is more to do at once."""
        if self._course is None:
            if not self._waiting:
                return False
            self._course = self._rehearse(self._waiting[0])
            self._images.sweep({self._waiting[0]})
        try:
            return next(self._course)
        except StopIteration:
            self._course = None
            self._waiting.pop(0)
            self._images.sweep(set())
            return True

    def learned(self) -> set[str]:
        """Models whose costs have come to be known since the last call."""
        learned, self._learned = self._learned, set()
        return learned

    def _rehearse(self, model: str) -> Course:
        engine = self._engine
        was_there = model in engine.resident()
        while model not in self._images.held and not was_there:
            yield False
        if engine.measured(model) or not engine.begin_load(model):
            return
        while model in engine.loading():
            yield False
        try:
            costs = yield from self._measure(model)
        except EngineFailed:
            # Its requests will be told.
            costs = None
        finally:
            for index in range(BATCH):
                engine.drop_kv(f"{PREFIX}{index}")
        if costs is not None:
            engine.learn(model, costs)
            self._learned.add(model)
        if not was_there:
            engine.evict(model)

    def _measure(self, model: str) -> Generator[bool, None, ModelCosts | None]:
        """None if there is no room for its KV."""
        if model not in self._engine.resident():
            return None
        if not (long := self._longest(model)):
            return None
        short = min(SHORT_TOKENS, long // 2)
        times = []
        for batch, start, fed in (
            (1, 0, short),
            (1, 0, long),
            (1, short - 1, 1),
            (BATCH, short - 1, 1),
            (BATCH, long - 1, 1),
        ):
            items = [
                StepItem(f"{PREFIX}{index}", (0,) * fed, start, GREEDY, 0, prompt=(0,) * (start + fed))
                for index in range(batch)
            ]
            times.append((yield from self._timed(model, items)))
        yield from self._swap(model, long)
        return costs_of(self._engine.costs(model), short, long, *times)

    def _swap(self, model: str, tokens: int) -> Course:
        """Moves a request's KV to the host, if there is room, until the engine knows what that takes."""
        if self._engine.swap_out(f"{PREFIX}0", tokens):
            while not self._engine.costs(model).swap_s_per_token:
                yield False

    def _longest(self, model: str) -> int:
        """The context of a whole batch that model and device have room for, and takes it; 0 if that is too little."""
        # A model's longest context may be short.
        tokens = min(LONG_TOKENS, self._specs[model].max_context_tokens)
        least = min(2 * SHORT_TOKENS, tokens)
        while tokens >= least:
            if all(self._engine.grow_kv(f"{PREFIX}{index}", model, tokens) for index in range(BATCH)):
                return tokens
            for index in range(BATCH):
                self._engine.drop_kv(f"{PREFIX}{index}")
            tokens //= 2
        return 0

    def _timed(self, model: str, items: list[StepItem]) -> Generator[bool, None, float]:
        """The median of a few steps, after one that warms up. A yield follows each."""
        self._engine.step(model, items)
        yield True
        times: list[float] = []
        while len(times) < TIMES and sum(times) < BUDGET_S:
            started_s = self._clock()
            self._engine.step(model, items)
            times.append(self._clock() - started_s)
            yield True
        return median(times)


def costs_of(
    known: ModelCosts,
    short: int,
    long: int,
    prefill_s: float,
    long_prefill_s: float,
    one_s: float,
    many_s: float,
    far_s: float,
) -> ModelCosts:
    """From the times of two prompts, and of decode steps of one request, of BATCH, and of BATCH with long contexts."""
    token_s = max((long_prefill_s - prefill_s) / (long - short), LEAST_S)
    context_s = max((far_s - many_s) / (BATCH * (long - short)), 0.0)
    request_s = max((many_s - one_s) / (BATCH - 1) - context_s * short, 0.0)
    return ModelCosts(
        weight_bytes=known.weight_bytes,
        kv_bytes_per_token=known.kv_bytes_per_token,
        load_s=known.load_s,
        prefill_base_s=max(prefill_s - token_s * short, LEAST_S),
        prefill_s_per_token=token_s,
        step_base_s=max(one_s - request_s - context_s * short, LEAST_S),
        step_s_per_request=request_s,
        step_s_per_context_token=context_s,
        swap_s_per_token=known.swap_s_per_token,
    )
