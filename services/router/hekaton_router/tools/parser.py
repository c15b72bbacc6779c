"""Calls of tools read out of a text as it comes.

What is read is a function of the text, never of the pieces in which it comes: so it is the same after an interruption.
Text outside of calls is given out as it is, except for white space between two calls and after the last one. What
begins like a call and is none is text.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hekaton_router.text import overlap
from hekaton_router.tools.formats import Format
from hekaton_router.tools.object import CallObject


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What some text adds to a call; its name comes with its beginning."""

    index: int
    name: str
    arguments: str


@dataclass(slots=True)
class Written:
    """What some text adds: to the text outside of calls, and to the calls."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)

    def add(self, other: "Written") -> "Written":
        self.text += other.text
        for piece in other.calls:
            self.add_call(piece)
        return self

    def add_call(self, piece: CallPiece) -> None:
        """Pieces of one call become one."""
        if not self.calls or self.calls[-1].index != piece.index:
            self.calls.append(piece)
        else:
            last = self.calls[-1]
            self.calls[-1] = replace(last, arguments=last.arguments + piece.arguments)


class CallParser:
    """`calls` is how many have begun; `ended` says that the output is complete, where one call is all it may have."""

    def __init__(self, form: Format, single: bool = False) -> None:
        self._form = form
        self._single = single
        self.calls = 0
        self.ended = False
        self._text = ""
        """Not looked at yet, or not decided."""
        self._raw = ""
        """Looked at since the marker or the last call: it is text if no call follows."""
        self._marked = 0
        """How many characters of it open the run."""
        self._state: Callable[[], bool] = self._outside
        """Goes one step on; False if that takes more text."""
        self._object = CallObject()
        self._in_run = 0
        """Calls since the marker."""
        self._beginning = form.bare
        self._after_call = False
        self._out = Written()

    def push(self, piece: str) -> Written:
        self._text += piece
        return self._advance()

    def flush(self) -> Written:
        """What was held back: call it once, after the last piece."""
        out = self._advance()
        while not self.ended and self._state != self._outside and not self._in_run_complete():
            self._give_back()
            out.add(self._advance())
        if not self.ended and self._state == self._outside and not (self._after_call and not self._text.strip()):
            out.text += self._text
        self._text = ""
        return out

    def _advance(self) -> Written:
        while not self.ended and self._state():
            pass
        out, self._out = self._out, Written()
        return out

    def _in_run_complete(self) -> bool:
        """Whether what was looked at since the last call can be left out: it is the end of a run, or of a call."""
        return self._object.begun if self._state == self._inside else bool(self._in_run)

    def _outside(self) -> bool:
        """Up to the next marker."""
        if self._beginning and self._bare():
            return True
        if self._beginning and not self._text.strip():
            return False
        self._beginning = False
        marker = self._form.marker
        found = self._text.find(marker)
        end = found if found >= 0 else len(self._text) - overlap(self._text, marker)
        before = self._text[:end]
        blank = self._after_call and not before.strip()
        if blank and found < 0:
            return False
        if not blank:
            self._out.text += before
            self._after_call, before = False, ""
        self._text = self._text[end:]
        if found >= 0:
            self._text = self._text[len(marker) :]
            self._open(before + marker, len(before + marker))
        return found >= 0

    def _bare(self) -> bool:
        """The text begins with what may be a call."""
        stripped = self._text.lstrip()
        if stripped[:1] != "{":
            return False
        self._open(self._text[: len(self._text) - len(stripped)], 0)
        self._text = stripped
        return True

    def _open(self, raw: str, marked: int) -> None:
        self._raw, self._marked, self._in_run, self._state = raw, marked, 0, self._between

    def _between(self) -> bool:
        """Before a call, or behind one."""
        skipped = self._form.between if self._in_run else self._form.opening
        rest = self._text.lstrip(skipped + " \t\r\n")
        closing = self._form.closing
        if rest.startswith("{"):
            self._raw += self._text[: len(self._text) - len(rest)]
            self._text, self._state = rest, self._inside
            self._object = CallObject()
        elif closing and rest.startswith(closing) and self._in_run:
            self._text = rest[len(closing) :]
            self._leave()
        elif not rest or (self._in_run and closing.startswith(rest)):
            return False
        elif self._in_run:
            self._leave()
        else:
            self._give_back()
        return True

    def _inside(self) -> bool:
        """In the object of a call."""
        one, known = self._object, self._object.begun
        taken = one.push(self._text)
        self._text = self._text[taken:]
        if one.begun and not known:
            self._in_run += 1
            self.calls += 1
        if one.begun:
            self._out.add_call(CallPiece(self.calls - 1, "" if known else one.name, one.new_arguments()))
        if one.failed:
            self._give_back()
        elif one.closed:
            self._raw, self._state = "", self._between
            self.ended = self._single
        return one.failed or one.closed

    def _leave(self) -> None:
        self._raw, self._state, self._after_call, self._beginning = "", self._outside, True, False

    def _give_back(self) -> None:
        """No call has begun since the marker or the last one: this is text, in which there may be another marker."""
        passed = self._raw + (self._object.text if self._state == self._inside else "")
        if self._in_run:
            self._after_call = True
        elif self._marked:
            self._out.text += passed[: self._marked]
            self._after_call, passed = False, passed[self._marked :]
        self._text = passed + self._text
        self._raw, self._state, self._beginning = "", self._outside, False
