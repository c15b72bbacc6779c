"""Log probabilities in OpenAI's words. One that is not known is null."""

import math

from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.detokenizer import Decoding
from hekaton_router.http.replies import ChatLogprobs, Likely, Spoken, TextLogprobs


def chat_logprobs(decoding: Decoding, tokens: pb.Tokens) -> ChatLogprobs:
    content = []
    for index, (token_id, told) in enumerate(zip(tokens.token_ids, tokens.logprobs, strict=True), tokens.first_index):
        chosen = _likely(decoding, token_id, told.logprob, index)
        likeliest = [_likely(decoding, top.token_id, top.logprob, index) for top in told.top]
        content.append(Spoken(**dict(chosen), top_logprobs=likeliest))
    return ChatLogprobs(content=content)


def text_logprobs(decoding: Decoding, tokens: pb.Tokens, begun: int) -> TextLogprobs:
    """`begun` characters of the output began before these tokens."""
    told = TextLogprobs()
    for index, (token_id, own) in enumerate(zip(tokens.token_ids, tokens.logprobs, strict=True), tokens.first_index):
        text = decoding.spelled(token_id, index == 0)[0]
        told.tokens.append(text)
        told.token_logprobs.append(_known(own.logprob))
        told.top_logprobs.append({text: _known(own.logprob)} | _by_text(decoding, own, index))
        told.text_offset.append(begun)
        begun += characters(decoding, token_id, index)
    return told


def characters(decoding: Decoding, token_id: int, index: int) -> int:
    """How many characters of the output begin in this token."""
    spelling = decoding.spelled(token_id, index == 0)[1] if decoding.visible([token_id]) else b""
    return sum(byte & 0xC0 != 0x80 for byte in spelling)


def _by_text(decoding: Decoding, told: common_pb2.TokenLogprobs, index: int) -> dict[str, float | None]:
    # Of tokens with the same text the likeliest counts: it comes first.
    pairs = [(decoding.spelled(top.token_id, index == 0)[0], _known(top.logprob)) for top in reversed(told.top)]
    return dict(reversed(dict(pairs).items()))


def _likely(decoding: Decoding, token_id: int, logprob: float, index: int) -> Likely:
    text, spelling = decoding.spelled(token_id, index == 0)
    return Likely(token=text, logprob=_known(logprob), bytes=list(spelling))


def _known(logprob: float) -> float | None:
    return logprob if math.isfinite(logprob) else None
