"""What of an output's text a client is told: the text outside of calls of tools, and the calls."""

from collections.abc import Sequence
from typing import NamedTuple

from hekaton.facts import RequestRecord
from hekaton_router.detokenizer import Decoding
from hekaton_router.text import OutputText
from hekaton_router.tools.formats import FORMATS
from hekaton_router.tools.parser import CallParser, CallPiece, Written


class Delivered(NamedTuple):
    """How many characters a client has: of the text, and of the names and arguments of calls."""

    text: int = 0
    calls: int = 0


NOTHING = Delivered()


class Words:
    """Token ids in, words out. `ended_at` is the number of tokens with which they were complete, if they were.

    They are a function of the ids, however these come: so a client that has some of them is told the others.
    """

    def __init__(self, decoding: Decoding, record: RequestRecord, delivered: Delivered) -> None:
        self._text = OutputText(decoding, record.sampling)
        form = FORMATS.get(record.tool_parser)
        self._parser = CallParser(form, single=not record.parallel_tool_calls) if form else None
        self._one_by_one = not record.parallel_tool_calls
        self._text_left, self._calls_left = delivered
        self._tokens = 0
        self._complete_at: int | None = None

    @property
    def ended_at(self) -> int | None:
        return self._text.ended_at if self._complete_at is None else self._complete_at

    @property
    def has_calls(self) -> bool:
        return self._parser is not None and self._parser.calls > 0

    def push(self, token_ids: Sequence[int]) -> Written:
        """What these ids complete."""
        if self._parser is None:
            return self._new(Written(self._text.push(token_ids)))
        if not self._one_by_one:
            return self._new(self._parser.push(self._text.push(token_ids)))
        written = Written()
        for token_id in token_ids:
            if self._complete_at is None:
                self._tokens += 1
                written.add(self._parser.push(self._text.push([token_id])))
                self._note(self._parser)
        return self._new(written)

    def flush(self) -> Written:
        """What was held back: call it once, after the last id."""
        if self._parser is None:
            return self._new(Written(self._text.flush()))
        if self._complete_at is not None:
            return Written()
        written = self._parser.push(self._text.flush()).add(self._parser.flush())
        self._note(self._parser)
        return self._new(written)

    def _note(self, parser: CallParser) -> None:
        if parser.ended:
            self._complete_at = self._tokens

    def _new(self, written: Written) -> Written:
        """Without what the client has."""
        if not (self._text_left or self._calls_left):
            return written
        text = written.text[self._text_left :]
        self._text_left = max(self._text_left - len(written.text), 0)
        pieces = [self._new_of(piece) for piece in written.calls]
        return Written(text, [piece for piece in pieces if piece.name or piece.arguments])

    def _new_of(self, piece: CallPiece) -> CallPiece:
        # A name is told whole or not at all.
        name = "" if self._calls_left else piece.name
        self._calls_left = max(self._calls_left - len(piece.name), 0)
        arguments = piece.arguments[self._calls_left :]
        self._calls_left = max(self._calls_left - len(piece.arguments), 0)
        return CallPiece(piece.index, name, arguments)
