"""What a client may ask of a generation, whatever protocol it speaks: the fields, and how a wrong one is refused."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hekaton.errors import InvalidArgument
from hekaton.facts import SloClass
from hekaton.rpc import convert
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb

MAX_SLO_S = 86_400.0
MAX_SEED = (1 << 63) - 1
Uint32 = Annotated[int, Field(ge=0, lt=1 << 32)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]


class Body(BaseModel):
    # Strict, so that "3" is no number and true is no 1.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)


class Slo(Body):
    """Token i, counted from 0, is due at acceptance + ttft_s + i * tbt_s."""

    ttft_s: float | None = Field(
        None, gt=0, le=MAX_SLO_S, description="seconds to the first token; the model's own if unset"
    )
    tbt_s: float | None = Field(
        None, gt=0, le=MAX_SLO_S, description="seconds from token to token; the model's own if unset"
    )
    class_: SloClass | None = Field(
        None,
        alias="class",
        strict=False,
        description="how urgent: what is unset is so many times the model's own",
    )

    def to_pb(self) -> common_pb2.Slo:
        message = common_pb2.Slo(
            ttft=None if self.ttft_s is None else convert.duration(self.ttft_s),
            tbt=None if self.tbt_s is None else convert.duration(self.tbt_s),
        )
        if self.class_ is not None:
            message.slo_class = convert.SLO_CLASS_TO_PB[self.class_]
        return message


class Generation(Body):
    """How to choose tokens, by when, and under which id."""

    temperature: float = Field(1.0, description="0 is greedy")
    top_p: float | None = None
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="randomness depends on (seed, position) alone; drawn if unset"
    )
    max_tokens: Uint32 | None = Field(None, description="the router's default if unset")
    n: Uint32 | None = Field(None, description="so many answers, each with randomness of its own")
    stop: str | list[str] = Field([], description="texts that end the generation; they are not part of the answer")
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[TokenId, float] = Field({}, description="added to the logits of these token ids")
    top_k: Uint32 | None = Field(None, description="hekaton: keep so many of the likeliest tokens; 0 keeps all")
    min_p: float | None = Field(None, description="hekaton: keep tokens at least this part as likely as the likeliest")
    repetition_penalty: float | None = Field(None, description="hekaton: of tokens in prompt and output; 1 is none")
    min_tokens: Uint32 | None = Field(None, description="hekaton: no end before so many tokens")
    stop_token_ids: list[Uint32] = Field([], description="hekaton: tokens that end the generation")
    ignore_eos: bool = Field(False, description="hekaton: go on past the model's end-of-sequence tokens")
    slo: Slo | None = Field(None, description="hekaton: overrides the model's latency objective")
    deadline_s: float | None = Field(None, gt=0, description="hekaton: the whole request ends by then")
    request_id: str | None = Field(
        None, description="hekaton: a request of the same id is admitted once; drawn if unset"
    )

    def to_request(self, model: str) -> pb.GenerateRequest:
        """The request of the native API, without its prompt: all doors lead to the same generation."""
        return pb.GenerateRequest(
            model=model,
            sampling=self._sampling(),
            slo=self.slo.to_pb() if self.slo else None,
            request_id=self.request_id or "",
        )

    def _sampling(self) -> common_pb2.Sampling:
        return common_pb2.Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
            min_tokens=self.min_tokens,
            n=self.n,
        )


class BadField(InvalidArgument):
    """A field of a client's request that cannot be honoured."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def checked(form: type[B], fields: dict[str, Any]) -> B:
    """Raises BadField. A field that is null counts as one that was not sent."""
    try:
        return form.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> BadField:
    """The first of what pydantic found."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = _name(first["loc"])
    if first["type"] == "extra_forbidden":
        return BadField(field, f"{field} is not supported: leave it out")
    message = first["msg"].removeprefix("Value error, ")
    return BadField(field, f"{field}: {message}" if field else message)


def _name(loc: tuple[int | str, ...]) -> str:
    """messages[0].content; the alternatives of a union, which pydantic names in between, are left out."""
    name = ""
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            name += f".{part}" if name else part
    return name
