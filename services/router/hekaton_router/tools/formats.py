"""How families of models write the calls of tools into their text."""

import base64
import hashlib
from dataclasses import dataclass

ID_CHARS = 9
"""Mistral's templates take no other length, and no other characters than letters and digits."""


@dataclass(frozen=True, slots=True)
class Format:
    """A call is a JSON object with the name of a function and its arguments."""

    name: str
    marker: str
    """Opens a run of calls."""
    opening: str
    """Characters that may stand between the marker and the first call, white space besides."""
    between: str
    """Between two calls, and before the closing."""
    closing: str
    arguments: str
    """What the models call them."""
    bare: bool = False
    """A text that begins with a call needs no marker."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be tokens of their own, and special ones."""
        return tuple(text for text in (self.marker, self.closing) if len(text) > 1)


# A brace too many is what Hermes' and Qwen's models get wrong most often.
HERMES = Format("hermes", "<tool_call>", "", "}", "</tool_call>", "arguments")
LLAMA3 = Format("llama3", "<|python_tag|>", "", ";,", "", "parameters", bare=True)
MISTRAL = Format("mistral", "[TOOL_CALLS]", "[", ",", "]", "arguments")
FORMATS = {one.name: one for one in (HERMES, LLAMA3, MISTRAL)}
OTHERS = ("<function=", "<arg_key>", "<tool_sep>", "[ARGS]")
"""What templates of models say that write other things than JSON objects between such markers."""


def detected(template: str) -> str:
    """The format that a chat template shows; empty if it shows none of these."""
    if any(other in template for other in OTHERS):
        return ""
    shown = (one.name for one in (HERMES, MISTRAL, LLAMA3) if one.marker in template)
    bare = '{"name": ' in template and '"parameters": ' in template
    return next(shown, LLAMA3.name if bare else "")


def call_id(request_id: str, index: int) -> str:
    """A name of a call, the same wherever and whenever it is read."""
    digest = hashlib.sha256(f"{request_id}/{index}".encode()).digest()
    return base64.b32encode(digest).decode()[:ID_CHARS]
