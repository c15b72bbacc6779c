"""The text of one output: detokenised as it comes, and cut where a stop text begins."""

from collections.abc import Sequence

from hekaton.facts import Sampling
from hekaton_router.detokenizer import Decoding, Detokenizer


class StopTexts:
    """Finds the first stop text to be complete, however the text comes in pieces.

    What may be the beginning of one is held back until it is known that it is none.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What of the text can be given out; nothing any more once a stop text is found."""
        if self.found:
            return ""
        text = self._held + piece
        # Of two that are complete with the same character the longer one counts.
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class OutputText:
    """Token ids in, text out. `ended_at` is the number of tokens with which a stop text was complete."""

    def __init__(self, decoding: Decoding, sampling: Sampling) -> None:
        self._detokenizer = Detokenizer(decoding)
        self._stops = StopTexts(sampling.stop) if sampling.stop else None
        self._min_tokens = sampling.min_tokens
        self._tokens = 0
        self.ended_at: int | None = None

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete, up to a stop text."""
        if not token_ids:
            return ""
        if self._stops is None:
            return self._detokenizer.push(token_ids)
        # One by one: how many tokens arrive together must not decide where the output ends.
        return "".join(self._push_one(token_id, self._stops) for token_id in token_ids)

    def flush(self) -> str:
        """What was held back: call it once, after the last id."""
        if self.ended_at is not None:
            return ""
        text = self._detokenizer.flush()
        if self._stops is not None and self._tokens > self._min_tokens:
            text = self._stops.push(text)
            self._note(self._stops)
            text += self._stops.flush()
        return text

    def _push_one(self, token_id: int, stops: StopTexts) -> str:
        if self.ended_at is not None:
            return ""
        self._tokens += 1
        piece = self._detokenizer.push([token_id])
        if self._tokens <= self._min_tokens:
            return piece
        text = stops.push(piece)
        self._note(stops)
        return text

    def _note(self, stops: StopTexts) -> None:
        if stops.found:
            self.ended_at = self._tokens


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, and goes on after."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
