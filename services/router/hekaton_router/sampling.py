"""What a request may ask of sampling: each field decided, or refused by its name and limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hekaton.errors import InvalidArgument
from hekaton.facts import ModelSpec, Sampling
from hekaton.v1 import common_pb2
from hekaton_router.admission import EMULATED

MAX_SEED = (1 << 63) - 1
MAX_STOP_TOKENS = 64
MAX_STOP_TEXTS = 16
MAX_STOP_CHARS = 256
MAX_LOGIT_BIAS_TOKENS = 1024
MAX_LOGIT_BIAS = 100.0
MAX_LOGPROBS = 20
MAX_CHOICES = 16
MAX_SCHEMA_BYTES = 16 << 10
Number = Literal["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
Whole = Literal["seed", "logprobs", "n"]


@dataclass(frozen=True, slots=True)
class Bounds:
    low: float
    high: float
    default: float
    above_low: bool = False
    """Above `low`, instead of from it on."""

    def check(self, name: str, value: float) -> None:
        # A NaN is not in any range.
        if not (self.low < value if self.above_low else self.low <= value) or not value <= self.high:
            start = "above" if self.above_low else "from"
            raise InvalidArgument(f"sampling.{name} must be {start} {self.low:g} to {self.high:g}, not {value:g}")


BOUNDS: dict[Number | Whole, Bounds] = {
    "temperature": Bounds(0.0, 100.0, 0.0),
    "top_p": Bounds(0.0, 1.0, 1.0, above_low=True),
    "min_p": Bounds(0.0, 1.0, 0.0),
    "repetition_penalty": Bounds(0.0, 10.0, 1.0, above_low=True),
    "presence_penalty": Bounds(-2.0, 2.0, 0.0),
    "frequency_penalty": Bounds(-2.0, 2.0, 0.0),
    "seed": Bounds(0, MAX_SEED, 0),
    "logprobs": Bounds(0, MAX_LOGPROBS, 0),
    "n": Bounds(1, MAX_CHOICES, 1),
}


def decide_sampling(
    message: common_pb2.Sampling, spec: ModelSpec, *, prompt_tokens: int, default_max_tokens: int, drawn_seed: int
) -> Sampling:
    """Every field decided and in range, for the first of `n` outputs. Raises InvalidArgument."""
    for name, bounds in BOUNDS.items():
        if message.HasField(name):
            bounds.check(name, getattr(message, name))
    _check_tokens("stop_token_ids", message.stop_token_ids, MAX_STOP_TOKENS, spec)
    _check_bias(message, spec)
    _check_stop(message.stop)
    if message.HasField("logprobs") and spec.architecture == EMULATED:
        raise InvalidArgument("sampling.logprobs: an emulated model has no probabilities; leave it unset")
    if message.HasField("json_schema"):
        _check_schema(message, spec)
    ends = _ends(message, spec)
    max_tokens = _max_tokens(message, spec, prompt_tokens, default_max_tokens)
    return Sampling(
        max_tokens=max_tokens,
        seed=message.seed if message.HasField("seed") else drawn_seed,
        temperature=_number(message, "temperature"),
        top_p=_number(message, "top_p"),
        top_k=message.top_k,
        stop_token_ids=ends,
        min_p=_number(message, "min_p"),
        repetition_penalty=_number(message, "repetition_penalty"),
        presence_penalty=_number(message, "presence_penalty"),
        frequency_penalty=_number(message, "frequency_penalty"),
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        min_tokens=_min_tokens(message, spec, ends, max_tokens),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        json_schema=message.json_schema,
    )


def _number(message: common_pb2.Sampling, name: Number) -> float:
    return float(getattr(message, name)) if message.HasField(name) else BOUNDS[name].default


def _ends(message: common_pb2.Sampling, spec: ModelSpec) -> tuple[int, ...]:
    own = () if message.ignore_eos else spec.eos_token_ids
    return tuple(sorted({*message.stop_token_ids, *own}))


def _check_tokens(name: str, token_ids: Sequence[int], most: int, spec: ModelSpec) -> None:
    if len(token_ids) > most:
        raise InvalidArgument(f"sampling.{name} may hold at most {most} tokens, not {len(token_ids)}")
    if any(token_id >= spec.vocab_size for token_id in token_ids):
        raise InvalidArgument(f"sampling.{name}: every id must be below the vocabulary size {spec.vocab_size}")


def _check_bias(message: common_pb2.Sampling, spec: ModelSpec) -> None:
    _check_tokens("logit_bias", list(message.logit_bias), MAX_LOGIT_BIAS_TOKENS, spec)
    for token_id, bias in message.logit_bias.items():
        if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            limit = f"from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
            raise InvalidArgument(f"sampling.logit_bias of token {token_id} must be {limit}, not {bias:g}")


def _check_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_TEXTS:
        raise InvalidArgument(f"sampling.stop may hold at most {MAX_STOP_TEXTS} texts, not {len(stop)}")
    if any(not 0 < len(text) <= MAX_STOP_CHARS for text in stop):
        raise InvalidArgument(f"sampling.stop: every text must have 1 to {MAX_STOP_CHARS} characters")


def _check_schema(message: common_pb2.Sampling, spec: ModelSpec) -> None:
    """Where the output can follow one. Whether this one can be followed says `hekaton.jsonschema.check`."""
    nbytes = len(message.json_schema.encode())
    if not 0 < nbytes <= MAX_SCHEMA_BYTES:
        raise InvalidArgument(f"sampling.json_schema must have 1 to {MAX_SCHEMA_BYTES} bytes, not {nbytes}")
    check_constrainable("sampling.json_schema", message, spec)


def check_constrainable(field: str, message: common_pb2.Sampling, spec: ModelSpec) -> None:
    """That the output can follow, and end where, a field wants it to."""
    if spec.architecture == EMULATED:
        raise InvalidArgument(f"{field}: an emulated model's tokens follow nothing; leave it unset")
    if not spec.eos_token_ids:
        raise InvalidArgument(f"{field}: this model has no end token to end with; leave it unset")
    if message.ignore_eos or message.min_tokens:
        name = "ignore_eos" if message.ignore_eos else "min_tokens"
        raise InvalidArgument(f"sampling.{name} forbids the end that {field} asks for: send one of them")


def _min_tokens(message: common_pb2.Sampling, spec: ModelSpec, ends: tuple[int, ...], max_tokens: int) -> int:
    if message.min_tokens > max_tokens:
        raise InvalidArgument(
            f"sampling.min_tokens may be at most max_tokens, which is {max_tokens}, not {message.min_tokens}"
        )
    if message.min_tokens and len(ends) >= spec.vocab_size:
        raise InvalidArgument("sampling.min_tokens leaves no token: every token of the vocabulary is a stop token")
    return message.min_tokens


def _max_tokens(message: common_pb2.Sampling, spec: ModelSpec, prompt_tokens: int, default: int) -> int:
    context = spec.max_context_tokens
    left = context - prompt_tokens
    if left < 1:
        raise InvalidArgument(
            f"the prompt has {prompt_tokens} tokens, which leaves no room in the context limit of {context} tokens"
        )
    if not message.HasField("max_tokens"):
        return min(max(default, message.min_tokens), left)
    if message.max_tokens < 1:
        raise InvalidArgument("sampling.max_tokens must be at least 1")
    if message.max_tokens > left:
        raise InvalidArgument(
            f"prompt ({prompt_tokens} tokens) and max_tokens ({message.max_tokens}) together exceed the context limit "
            f"of {context} tokens: max_tokens may be at most {left}"
        )
    return message.max_tokens
