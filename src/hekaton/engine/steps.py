"""The steps of turns: what is fed, what comes out, who has ended with it."""

from collections.abc import Callable, Iterable
from enum import Enum

from hekaton.engine.batch import Share, Stepper
from hekaton.engine.desk import Desk
from hekaton.engine.interface import Sampled
from hekaton.engine.live import LiveRequest
from hekaton.engine.messages import Event, Started, Step, StepOutput
from hekaton.engine.turnlog import OpenTurn, TurnLog
from hekaton.errors import EngineFailed
from hekaton.policy.fairness import charges
from hekaton.policy.types import Role


class Outcome(Enum):
    STEPPED = "stepped"
    COMING = "coming"
    """KV that a step needs is on its way from the host."""
    NOTHING = "nothing"
    """None of the turn's requests can run."""


class Steps:
    """Makes steps and books them. On a prefill worker a request leaves with its next token."""

    def __init__(
        self,
        stepper: Stepper,
        desk: Desk,
        log: TurnLog,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        role: Role = Role.ANY,
    ) -> None:
        self._stepper = stepper
        self._desk = desk
        self._log = log
        self._emit = emit
        self._clock = clock
        self._hands_over = role is Role.PREFILL

    def step(self, turn: OpenTurn, now_s: float) -> Outcome:
        """Makes one step of the turn's model, if any of its requests can run."""
        members = (self._desk.live.get(request_id) for request_id in turn.order)
        runnable = [one for one in members if one and one.model == turn.model and one.parked_until_s <= now_s]
        shares = self._stepper.compose(runnable, now_s)
        if not shares:
            return Outcome.COMING if any(one.fetching for one in runnable) else Outcome.NOTHING
        exposed_s = 0.0
        if turn.first_step_s is None:
            exposed_s = now_s - turn.chosen_s
            turn.first_step_s = now_s
            turn.until_s = now_s + turn.budget_s
        self._start(share.request for share in shares)
        results = self._stepper.run(turn.model, shares)
        fed = [(share.request.tenant, len(share.item.token_ids)) for share in shares]
        self._log.charge(charges(exposed_s, self._clock() - now_s, fed))
        self._apply(turn, shares, results)
        return Outcome.STEPPED

    def _start(self, requests: Iterable[LiveRequest]) -> None:
        for request in requests:
            if not request.started:
                request.started = True
                self._emit(Started(request.request_id, request.epoch))

    def _apply(self, turn: OpenTurn, shares: list[Share], results: list[Sampled | EngineFailed | None]) -> None:
        """Books what a step produced: tokens first, then the requests that it ended."""
        self._desk.demands.touch(turn.model)
        outputs: list[StepOutput] = []
        failed: list[tuple[LiveRequest, EngineFailed]] = []
        stepped: list[LiveRequest] = []
        for share, result in zip(shares, results, strict=True):
            request = share.request
            if isinstance(result, EngineFailed):
                failed.append((request, result))
                continue
            request.computed += len(share.item.token_ids)
            if result is not None:
                outputs.append(_output(request, result))
                request.produced.append(result.token_id)
                stepped.append(request)
        self._log.stepped(turn, len(outputs), sum(_prefilled(share) for share in shares))
        if outputs:
            self._emit(Step(turn.model, tuple(outputs)))
        for request, error in failed:
            self._desk.fail(request, error)
        for request in stepped:
            self._desk.finish_if_complete(request)
            if self._hands_over:
                self._desk.hand_over(request)


def _output(request: LiveRequest, sampled: Sampled) -> StepOutput:
    logprobs = (sampled.logprobs,) if sampled.logprobs else ()
    return StepOutput(request.request_id, request.epoch, len(request.produced), (sampled.token_id,), logprobs)


def _prefilled(share: Share) -> int:
    """Tokens of a prompt, or of what is computed again."""
    fed = len(share.item.token_ids)
    return 0 if fed == 1 and share.item.start else fed
