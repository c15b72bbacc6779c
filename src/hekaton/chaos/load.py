"""The checked load: clients that resume, some of which cancel, and what each of them saw."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from redis.asyncio import Redis

from hekaton.client import Accepted, Client, Finished, SamplingOptions, Tokens
from hekaton.errors import HekatonError, StoreUnavailable
from hekaton.facts import RequestState
from hekaton.store.requests import Requests

PROMPTS = 12
"""Different ones of each model, so that every output can be checked against an undisturbed one."""
LENGTHS = (16, 48, 96, 160)
SEED = 7
CANCELLED_PART = 0.1
TIMEOUT_S = 240.0
WINDOW_S = 120.0
SETTLED_S = 60.0


class End(StrEnum):
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"
    """Never accepted."""
    LOST = "lost"
    """Accepted, and its end never came, or another one than the store's."""


@dataclass(frozen=True, slots=True)
class Case:
    request_id: str
    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    cancel_after: int | None
    """It is cancelled after so many tokens."""


@dataclass(slots=True)
class Outcome:
    case: Case
    end: End = End.REFUSED
    reason: str = ""
    accepted: bool = False
    token_ids: list[int] = field(default_factory=list)
    duplicated_tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)
    """When something came, on the event loop's clock; first of all its sending."""


def cases(count: int, models: Sequence[str], random: Random, run_id: str) -> list[Case]:
    prompts = {
        model: [tuple(random.randrange(256) for _ in range(random.randint(1, 40))) for _ in range(PROMPTS)]
        for model in models
    }
    made = []
    for index in range(count):
        model, max_tokens = random.choice(models), random.choice(LENGTHS)
        cancelled = random.random() < CANCELLED_PART
        cancel_after = random.randrange(max_tokens) if cancelled else None
        made.append(Case(f"{run_id}-{index}", model, random.choice(prompts[model]), max_tokens, cancel_after))
    return made


class Load:
    """A closed loop of `concurrency` clients over all cases. `done` grows as they end."""

    def __init__(self, addresses: Sequence[str], redis: Redis, cases: Iterable[Case], concurrency: int) -> None:
        self._addresses = addresses
        self._store = Requests(redis)
        self._cases = iter(cases)
        self._concurrency = concurrency
        self.outcomes: list[Outcome] = []
        self.done = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(self._concurrency):
                turned = [*self._addresses[index % 2 :], *self._addresses[: index % 2]]
                group.create_task(self._client(turned))

    async def _client(self, addresses: Sequence[str]) -> None:
        async with Client(*addresses) as client:
            for case in self._cases:
                outcome = Outcome(case, arrivals_s=[asyncio.get_running_loop().time()])
                self.outcomes.append(outcome)
                await self._generate(client, outcome)
                await self._agree(outcome)
                self.done += 1

    async def _generate(self, client: Client, outcome: Outcome) -> None:
        case = outcome.case
        options = SamplingOptions(max_tokens=case.max_tokens, temperature=0.0, seed=SEED, ignore_eos=True)
        generation = client.generate(
            case.model,
            case.prompt,
            options,
            request_id=case.request_id,
            timeout_s=TIMEOUT_S,
            resume_window_s=WINDOW_S,
        )
        try:
            async with aclosing(generation) as events:
                async for event in events:
                    self._take(outcome, event)
                    if case.cancel_after is not None and len(outcome.token_ids) > case.cancel_after:
                        break
        except HekatonError as error:
            outcome.end = End.FAILED if outcome.accepted else End.REFUSED
            outcome.reason = error.reason
            return
        if outcome.end is not End.FINISHED:
            outcome.end = End.CANCELLED

    def _take(self, outcome: Outcome, event: Accepted | Tokens | Finished) -> None:
        outcome.arrivals_s.append(asyncio.get_running_loop().time())
        # Whoever resumes before he has heard anything gets tokens at once.
        outcome.accepted = True
        match event:
            case Tokens(first_index=first):
                outcome.duplicated_tokens += max(len(outcome.token_ids) - first, 0)
                outcome.token_ids += event.token_ids
            case Finished():
                outcome.end = End.FINISHED

    async def _agree(self, outcome: Outcome) -> None:
        """The store says the same, soon."""
        if not outcome.accepted:
            return
        state: RequestState | None = None
        try:
            async with asyncio.timeout(SETTLED_S):
                while state is None or not state.terminal:
                    state = await self._state(outcome.case.request_id)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            outcome.end, outcome.reason = End.LOST, f"still {state}"
            return
        agrees = {
            End.FINISHED: (RequestState.FINISHED,),
            # Whoever cancels may come too late.
            End.CANCELLED: (RequestState.CANCELLED, RequestState.FINISHED, RequestState.FAILED),
            End.FAILED: (RequestState.FAILED, RequestState.CANCELLED),
        }
        if state not in agrees[outcome.end]:
            outcome.end, outcome.reason = End.LOST, f"client saw {outcome.end} {outcome.reason}, store says {state}"

    async def _state(self, request_id: str) -> RequestState | None:
        try:
            known = (await self._store.peek([request_id])).get(request_id)
        except StoreUnavailable:
            return None
        return known.state if known else None
