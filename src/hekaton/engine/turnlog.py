"""The books of turns: what ran when, what the switches cost, and whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hekaton.facts import TurnRecord, Weights


@dataclass(slots=True)
class OpenTurn:
    """The turn that is under way. Times are on the loop's clock."""

    model: str
    chosen_s: float
    weights: Weights = Weights.RESIDENT
    until_s: float = 0.0
    """End of its budget, which counts from the first step or the latest decision."""
    budget_s: float = 0.0
    order: tuple[str, ...] = ()
    """Request ids, the most urgent first."""
    first_step_s: float | None = None
    steps: int = 0
    tokens: int = 0


@dataclass(slots=True)
class TurnLog:
    """Counts turns, switches and copied bytes, and writes a record when a turn ends."""

    worker_id: str
    epoch_s: float
    """The engine's start, on the loop's clock."""
    index: int = 0
    switches: int = 0
    tokens: int = 0
    prefilled_tokens: int = 0
    """Of prompts, or of what is computed again."""
    last_model: str = ""
    _copied: dict[str, int] = field(default_factory=dict)
    _used_s: dict[str, float] = field(default_factory=dict)

    def charge(self, seconds: Mapping[str, float]) -> None:
        """To tenants."""
        for tenant, used_s in seconds.items():
            self._used_s[tenant] = self._used_s.get(tenant, 0.0) + used_s

    def take_used_s(self) -> dict[str, float]:
        """What was charged since this was asked last."""
        used_s, self._used_s = self._used_s, {}
        return used_s

    def loaded(self, model: str, copied_bytes: int) -> None:
        self._copied[model] = self._copied.get(model, 0) + copied_bytes

    def opened(self, model: str, now_s: float, *, resident: bool) -> OpenTurn:
        """A turn that begins."""
        if not resident:
            return OpenTurn(model, now_s, Weights.DEMAND)
        return OpenTurn(model, now_s, Weights.PREFETCH if self._copied.get(model) else Weights.RESIDENT)

    def stepped(self, turn: OpenTurn, tokens: int, prefilled_tokens: int) -> None:
        turn.steps += 1
        turn.tokens += tokens
        self.tokens += tokens
        self.prefilled_tokens += prefilled_tokens

    def close(self, turn: OpenTurn, first_step_s: float, now_s: float, preempted: tuple[str, ...]) -> TurnRecord:
        """The record of a turn that has ended."""
        switched = turn.model != self.last_model
        record = TurnRecord(
            index=self.index,
            worker_id=self.worker_id,
            model=turn.model,
            start_s=turn.chosen_s - self.epoch_s,
            duration_s=now_s - turn.chosen_s,
            exposed_switch_s=first_step_s - turn.chosen_s,
            switched=switched,
            copied_bytes=self._copied.pop(turn.model, 0),
            steps=turn.steps,
            tokens=turn.tokens,
            preempted_request_ids=preempted,
            weights=turn.weights,
        )
        self.index += 1
        self.switches += switched
        self.last_model = turn.model
        return record
