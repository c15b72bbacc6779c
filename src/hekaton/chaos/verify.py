"""Every output against one that nothing disturbed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hekaton.chaos.load import SEED, Outcome
from hekaton.cli.demo_verify import verify
from hekaton.engine.emulated import emulated_token
from hekaton.facts import ModelSpec


@dataclass(frozen=True, slots=True)
class _Answer:
    id: str
    model: str
    prompt_ids: tuple[int, ...]
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Verified:
    wrong: dict[str, int]
    """The first wrong token, by request."""
    ties: int


async def real(outcomes: Sequence[Outcome], models_dir: Path) -> Verified:
    """Greedy outputs of one prompt are prefixes of the longest; what is not one is compared for itself."""
    longest: dict[tuple[str, tuple[int, ...]], Outcome] = {}
    for outcome in sorted(outcomes, key=lambda one: -len(one.token_ids)):
        longest.setdefault((outcome.case.model, outcome.case.prompt), outcome)
    asked: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for outcome in outcomes:
        case, token_ids = outcome.case, outcome.token_ids
        whole = longest[case.model, case.prompt].token_ids
        tokens = whole if whole[: len(token_ids)] == token_ids else token_ids
        asked.setdefault((case.model, case.prompt, tuple(tokens)), []).append(case.request_id)
    answers = [_Answer(ids[0], model, prompt, list(tokens)) for (model, prompt, tokens), ids in asked.items()]
    verdicts = await verify(answers, models_dir, "float32", quiet=True)
    first_wrong = {one.id: one.first_difference for one in verdicts if one.first_difference is not None}
    lengths = {outcome.case.request_id: len(outcome.token_ids) for outcome in outcomes}
    wrong = {
        name: first_wrong[ids[0]]
        for ids in asked.values()
        for name in ids
        if ids[0] in first_wrong and lengths[name] > first_wrong[ids[0]]
    }
    return Verified(wrong, sum(one.ties for one in verdicts))


def emulated(outcomes: Sequence[Outcome], spec: ModelSpec) -> Verified:
    """Emulated tokens are a function of model, seed and position."""
    wrong = {}
    for outcome in outcomes:
        for position, token_id in enumerate(outcome.token_ids):
            if token_id != emulated_token(outcome.case.model, SEED, position, spec):
                wrong[outcome.case.request_id] = position
                break
    return Verified(wrong, 0)
