"""Where a text ends does not depend on how it comes."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.facts import Sampling
from hekaton_router.text import OutputText, StopTexts
from hekaton_router.tokenization import byte_codec

DECODING = byte_codec().decoding
AB = st.text("ab", max_size=12)


def expected(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Character by character: the first stop text to be complete, the longest of those that are."""
    for end in range(1, len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(st.lists(AB, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_where_the_first_stop_text_is_complete(pieces: list[str], stop: list[str]) -> None:
    stops = StopTexts(stop)
    given_out = "".join(stops.push(piece) for piece in pieces)
    whole, found = expected("".join(pieces), stop)
    assert whole.startswith(given_out)
    assert (given_out + stops.flush(), stops.found) == (whole, found)


@given(st.lists(AB, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_more_is_held_back_than_a_stop_text_could_take(pieces: list[str], stop: list[str]) -> None:
    stops, text, out = StopTexts(stop), "", ""
    for piece in pieces:
        text += piece
        out += stops.push(piece)
        held = text[len(out) :]
        assert stops.found or not held or any(one.startswith(held) for one in stop)


def output(stop: tuple[str, ...], min_tokens: int = 0) -> OutputText:
    return OutputText(DECODING, Sampling(100, 0, stop=stop, min_tokens=min_tokens))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_stop_text_may_lie_across_tokens_and_end_inside_a_batch(size: int) -> None:
    ids = "so 🦊 it endSTOP here".encode()
    text = output(("endS", "🦊 it endST", "never"))
    pieces = [text.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert "".join(pieces) + text.flush() == "so 🦊 it "
    assert text.ended_at == ids.index(b"S") + 1


def test_what_might_have_been_a_stop_text_is_delivered_in_the_end() -> None:
    text = output(("stop",))
    assert text.push(b"a st") == "a "
    assert text.push(b"art s") == "start "
    assert text.flush() == "s"
    assert text.ended_at is None


def test_before_min_tokens_no_text_ends_the_output() -> None:
    text = output(("x",), min_tokens=3)
    assert text.push(b"axbxc") + text.flush() == "axb"
    assert text.ended_at == 4
