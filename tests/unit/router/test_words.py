"""What a client is told does not depend on where its connection broke, nor on how the tokens came."""

import pytest
from tokenizers import AddedToken

from fakes.tools import OUTPUT
from hekaton.facts import RequestRecord, Sampling, Slo
from hekaton_router.chat import ChatTemplate
from hekaton_router.detokenizer import Decoding
from hekaton_router.tokenization import TextCodec, byte_codec
from hekaton_router.tools.formats import HERMES
from hekaton_router.tools.parser import Written
from hekaton_router.words import NOTHING, Delivered, Words

DECODING = byte_codec().decoding


def record(*, parser: str = "hermes", parallel: bool = True, stop: tuple[str, ...] = ()) -> RequestRecord:
    sampling = Sampling(500, 0, stop=stop)
    return RequestRecord("r", "", "m", 1, sampling, Slo(1, 1), 1, tool_parser=parser, parallel_tool_calls=parallel)


def whole(token_ids: bytes, size: int, **asked: object) -> tuple[Written, int | None]:
    words = Words(DECODING, record(**asked), NOTHING)  # type: ignore[arg-type]
    out = Written()
    for start in range(0, len(token_ids), size):
        out.add(words.push(token_ids[start : start + size]))
    return out.add(words.flush()), words.ended_at


def size_of(written: Written) -> Delivered:
    return Delivered(len(written.text), sum(len(piece.name) + len(piece.arguments) for piece in written.calls))


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_wherever_the_connection_breaks_each_word_is_told_once(stop: tuple[str, ...]) -> None:
    output = OUTPUT.replace("Paris", "Zürich").encode()
    all_of_it, _ = whole(output, 1000, stop=stop)
    for known in range(len(output) + 1):
        asked = record(stop=stop)
        has = Words(DECODING, asked, NOTHING).push(output[:known])
        words = Words(DECODING, asked, size_of(has))
        rest = words.push(output[:known]).add(words.push(output[known:])).add(words.flush())
        assert has.add(rest) == all_of_it


@pytest.mark.parametrize("asked", [{"parallel": False}, {"stop": ("get_time",)}, {"parallel": False, "stop": ("ook",)}])
def test_an_output_ends_at_the_same_token_however_they_come(asked: dict[str, object]) -> None:
    expected = whole(OUTPUT.encode(), 1, **asked)
    assert expected[1] is not None
    for size in (2, 5, 64, 1000):
        assert whole(OUTPUT.encode(), size, **asked) == expected


def test_markers_that_are_special_tokens_are_read() -> None:
    tokenizer = byte_codec().tokenizer
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<end>", *HERMES.markers)])
    codec = TextCodec(tokenizer, Decoding(tokenizer), ChatTemplate("", {}))
    ids = codec.encode(f"{OUTPUT}<end>")
    assert len(ids) < len(OUTPUT)
    words = Words(codec.decoding_showing(HERMES.markers), record(), NOTHING)
    said = Written()
    for token_id in ids:
        said.add(words.push([token_id]))
    said.add(words.flush())
    assert said == whole(OUTPUT.encode(), 1000)[0]
    assert codec.decoding_showing(("no", "token")) is codec.decoding
    assert "<" not in codec.decode(ids)
