"""JSON schemas that outputs follow: what of JSON Schema is understood, and how the JSON is laid out.

Routers ask whether a schema can be followed, engines follow it; both see the same grammar. The library follows no
references to elsewhere, and refuses keywords that it does not know instead of ignoring them.
"""

from typing import TYPE_CHECKING

from llguidance import LLMatcher

from hekaton.errors import InvalidArgument

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

ANY_OBJECT = '{"type": "object"}'
MAX_REASON_CHARS = 500
LAYOUT: "JsonCompileOptions" = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False,
}  # fmt: skip
"""One way to write each value, that of most training data: a model that may write spaces for ever can do so."""


def grammar_of(schema: str) -> str:
    """The grammar of a schema, as the library's matchers take it; it may be invalid. Raises ValueError for no JSON."""
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT))


def check(schema: str, field: str = "sampling.json_schema") -> None:
    """Raises InvalidArgument, saying why, for what cannot be followed. May take long: call it off the event loop."""
    try:
        grammar = grammar_of(schema)
    except ValueError as failure:
        raise _refusal(field, str(failure)) from failure
    check_grammar(grammar, field)


def check_grammar(grammar: str, field: str) -> None:
    """The same of a grammar, whatever its syntax."""
    if error := LLMatcher.validate_grammar(grammar):
        raise _refusal(field, error)


def _refusal(field: str, error: str) -> InvalidArgument:
    return InvalidArgument(f"{field} cannot be followed: {' '.join(error.split())[:MAX_REASON_CHARS]}")
