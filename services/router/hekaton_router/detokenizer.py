"""Token ids back to text, piece by piece."""

from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoding:
    """How a tokenizer turns ids into text; made once, used by many detokenisers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        raw = (tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256))
        self.byte_ids = frozenset(token_id for token_id in raw if token_id is not None)
        """Tokens of one raw byte. A decoder judges a run of them as a whole: one bad byte spoils the run."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Whole text of ids, special tokens skipped."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def visible(self, token_ids: Sequence[int]) -> list[int]:
        """Those that have a part in the text: neither special nor unknown."""
        known = self._tokenizer.id_to_token
        return [token_id for token_id in token_ids if token_id not in self._special and known(token_id) is not None]


class Detokenizer:
    """Turns the ids of one output into text as they come.

    The pieces joined are the decoding of all ids with special tokens skipped. A character that is not whole yet is
    held back until it is, or until `flush`.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._ids: list[int] = []
        self._sent_chars = 0
        # ids[start:done] is the last piece that was given out: the context for decoding what follows it.
        self._start = 0
        self._done = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete."""
        self._ids += self._decoding.visible(token_ids)
        if self._done == len(self._ids) or self._ids[-1] in self._decoding.byte_ids:
            return ""
        before = self._decoding.decode(self._ids[self._start : self._done])
        text = self._decoding.decode(self._ids[self._start :])
        if text.endswith(REPLACEMENT) or len(text) <= len(before):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._send(text[len(before) :])

    def flush(self) -> str:
        """What was held back: call it once, after the last id."""
        return self._send(self._decoding.decode(self._ids)[self._sent_chars :])

    def _send(self, piece: str) -> str:
        self._sent_chars += len(piece)
        return piece
