"""The yardstick: an uninterrupted greedy `generate` of transformers, to compare served tokens with.

`python -m hekaton.engine.reference` reads a JSON object a line, {"id", "checkpoint", "dtype", "prompt_ids",
"token_ids"}, and answers each with {"id", "equal", "ties", "first_difference"}. A *tie* is a token where the
reference's choice and ours lie within 2e-5 of the largest absolute logit, or that differs after a choice of experts
between which there was no more than that: there the order of a sum decides, and the comparison goes on after our token.
"""

import sys
from dataclasses import dataclass

import msgspec
import torch
import transformers
from torch import Tensor

TIE = 2e-5


class Question(msgspec.Struct, frozen=True):
    id: str
    checkpoint: str
    dtype: str
    prompt_ids: list[int]
    token_ids: list[int]


class Verdict(msgspec.Struct, frozen=True):
    id: str
    equal: bool
    """The reference says the same, ties apart."""
    ties: int
    first_difference: int | None
    """Index of the first token that is no tie and differs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    ties: int
    first_difference: int | None


def load(checkpoint: str, dtype: str) -> transformers.PreTrainedModel:
    """The plain model, as anybody would load it; `dtype` "" is the checkpoint's own."""
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype or "auto", trust_remote_code=False, local_files_only=True
    )
    return model.eval()


@torch.inference_mode()
def compare(model: transformers.PreTrainedModel, prompt: list[int], tokens: list[int]) -> Comparison:
    """Holds greedy `tokens` against the model's own."""
    ties = 0
    known = 0
    while known < len(tokens):
        own = _generate(model, prompt + tokens[:known], len(tokens) - known)
        rest = tokens[known:]
        same = next((i for i, (a, b) in enumerate(zip(own, rest, strict=False)) if a != b), min(len(own), len(rest)))
        known += same
        if known == len(tokens):
            break
        if same >= len(own) or not _is_tie(model, prompt + tokens[:known], tokens[known]):
            return Comparison(ties, known)
        ties += 1
        known += 1
    return Comparison(ties, None)


def _generate(model: transformers.PreTrainedModel, ids: list[int], count: int) -> list[int]:
    config = transformers.GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
    )
    row = torch.tensor([ids])
    output: Tensor = model.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


def _is_tie(model: transformers.PreTrainedModel, ids: list[int], token: int) -> bool:
    chosen = getattr(model.config, "num_experts_per_tok", 0)
    asked = {"output_router_logits": True} if chosen else {}
    output = model(torch.tensor([ids]), logits_to_keep=1, **asked)
    logits = output.logits[0, -1].float()
    if logits.max() - logits[token] < TIE * logits.abs().max():
        return True
    return bool(chosen) and any(routed_by_chance(router, chosen) for router in output.router_logits)


def routed_by_chance(logits: Tensor, chosen: int) -> bool:
    """Whether the last expert chosen for any token is tied with the first left out. logits: (tokens, experts)."""
    logits = logits.float().sort(descending=True).values
    margins = logits[:, chosen - 1 : -1] - logits[:, chosen:]
    return bool((margins[:, :1] < TIE * logits.abs().amax(-1, keepdim=True)).any())


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    decoder = msgspec.json.Decoder(Question)
    loaded, model = ("", ""), None
    for line in sys.stdin:
        question = decoder.decode(line)
        wanted = (question.checkpoint, question.dtype)
        if model is None or loaded != wanted:
            loaded, model = wanted, load(*wanted)
        found = compare(model, question.prompt_ids, question.token_ids)
        verdict = Verdict(question.id, found.first_difference is None, found.ties, found.first_difference)
        print(msgspec.json.encode(verdict).decode(), flush=True)


if __name__ == "__main__":
    main()
