"""Token ids back to text, piece by piece."""

from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the bytes: those that print stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


ALPHABET = byte_alphabet()


class Decoding:
    """How a tokenizer turns ids into text; made once, used by many detokenisers."""

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[int] = frozenset()) -> None:
        """Special tokens are skipped, except for those that are to be `shown`."""
        self._tokenizer = tokenizer
        self._shown = shown
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special) - shown
        raw = (tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256))
        self.byte_ids = frozenset(token_id for token_id in raw if token_id is not None)
        """Tokens of one raw byte. A decoder judges a run of them as a whole: one bad byte spoils the run."""
        self._visible: set[int] = set()
        self._alone: dict[int, str] = {}
        self._spelled: dict[tuple[int, bool], tuple[str, bytes]] = {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Whole text of ids, special tokens skipped."""
        if not self._shown:
            return self._tokenizer.decode(token_ids, skip_special_tokens=True)
        kept = [token_id for token_id in token_ids if token_id not in self._special]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def piece(self, token_ids: Sequence[int]) -> str:
        """The same of a few visible ids; that of a single one is remembered."""
        if len(token_ids) != 1:
            return self.decode(token_ids)
        text = self._alone.get(token_ids[0])
        if text is None:
            text = self._alone[token_ids[0]] = self.decode(token_ids)
        return text

    def spelled(self, token_id: int, first: bool) -> tuple[str, bytes]:
        """Text and bytes of one token, the `first` of its output or not; a special one is called by its name."""
        known = self._spelled.get((token_id, first))
        if known is None:
            text = self._text_of(token_id, first)
            known = self._spelled[token_id, first] = text, self._bytes_of(token_id, text)
        return known

    def visible(self, token_ids: Sequence[int]) -> list[int]:
        """Those that have a part in the text: neither special nor unknown."""
        return [token_id for token_id in token_ids if token_id in self._visible or self._is_visible(token_id)]

    def _text_of(self, token_id: int, first: bool) -> str:
        if token_id in self._special:
            return self._tokenizer.id_to_token(token_id) or ""
        alone = self.decode([token_id])
        # A decoder may take the space from the beginning of a text: what the token adds to itself has it still.
        return alone if first or REPLACEMENT in alone else self.decode([token_id, token_id])[len(alone) :]

    def _bytes_of(self, token_id: int, text: str) -> bytes:
        if REPLACEMENT not in text:
            return text.encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        if token_id in self.byte_ids:
            return bytes([int(token[3:5], 16)])
        if all(letter in ALPHABET for letter in token):
            return bytes(ALPHABET[letter] for letter in token)
        return text.encode()

    def _is_visible(self, token_id: int) -> bool:
        if token_id in self._special or self._tokenizer.id_to_token(token_id) is None:
            return False
        self._visible.add(token_id)
        return True


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
        before = self._decoding.piece(self._ids[self._start : self._done])
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
