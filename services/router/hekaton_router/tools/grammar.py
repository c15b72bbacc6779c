"""Grammars of outputs that must call a tool, or whose calls must follow their schemas.

Lark's syntax as llguidance has it: JSON schemas in it, tokens by their id in angle brackets, and `[lazy]` for a text
that ends where it can.
"""

import json
import re
from collections.abc import Mapping

from hekaton import jsonschema
from hekaton.errors import InvalidArgument
from hekaton_router.tokenization import TextCodec
from hekaton_router.tools.asked import ToolUse
from hekaton_router.tools.formats import Format

ANY_ARGUMENTS = {"type": "object"}


def demanded(form: Format, use: ToolUse, codec: TextCodec, answer: str = "") -> str:
    """The grammar of an output that calls tools as it must. Raises InvalidArgument. May take long.

    Where it need not call any, its text follows the schema `answer`, if there is one.
    """
    if form.bare and answer and not use.forced:
        # Both begin with a brace, and the library's lexer takes the longer of two beginnings for certain.
        raise InvalidArgument(
            "sampling.json_schema leaves no room for calls of this model: choose none or required, or send no tools"
        )
    for index, tool in enumerate(use.tools):
        if tool.strict or tool in use.forced:
            jsonschema.check(json.dumps(tool.schema), f"chat.tools[{index}].parameters")
    grammar = grammar_of(form, use, markers_of(form, codec), answer)
    jsonschema.check_grammar(grammar, "chat.tools")
    return grammar


def markers_of(form: Format, codec: TextCodec) -> dict[str, int]:
    """Ids of the markers that are no text for the library: special tokens, and others that look like it."""
    own = codec.tokens_of_their_own(form.markers)
    looks_special = re.compile("<.*>")
    return {one.content: id_ for id_, one in own.items() if one.special or looks_special.fullmatch(one.content)}


def grammar_of(form: Format, use: ToolUse, markers: Mapping[str, int], answer: str = "") -> str:
    """Of a whole output. `markers` are those that have an id instead of a text."""
    opening, closing = (_terminal(text, markers) for text in (form.marker, form.closing))
    run, joint = {
        "hermes": (rf'"\n" call "\n" {closing}', r'"\n"'),
        "mistral": (f'" "? "[" call{_more(use, ", ")} {closing}', ""),
        "llama3": ("call", ""),
    }[form.name]
    if not (use.forced or answer):
        return "\n".join((_free(form, opening, run), *_calls(form, use)))
    head = "" if form.bare else opening
    again = f" ({joint} {head} {run})*" if joint and use.several else ""
    lines = [f"calls: {head} {run}{again}", *_calls(form, use)]
    if use.forced:
        return "\n".join(("start: calls", *lines))
    return "\n".join(("start: calls | answer", f"answer: {_json(json.loads(answer))}", *lines))


def _free(form: Format, opening: str, run: str) -> str:
    """Any text, and calls in it as they must be."""
    no_marker = f"~/(.|\\n)*{re.escape(form.marker)}(.|\\n)*/"
    if form.bare:
        return f"start: {run} | OTHER\nOTHER: /(\\s*[^\\s{{](.|\\n)*)?/ & {no_marker}"
    lazy, text = ("", f" & {no_marker}") if opening.startswith("<") else ("[lazy]", "")
    return f"start: (lead {run})* TEXT\nlead{lazy}: TEXT {opening}\nTEXT: /(.|\\n)*/{text}"


def _calls(form: Format, use: ToolUse) -> list[str]:
    tools = use.forced or use.tools
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        beginning = f'{{"name": "{tool.name}", "{form.arguments}": '
        lines.append(f'call_{index}: {json.dumps(beginning)} arguments_{index} "}}"')
        lines.append(f"arguments_{index}: {_json(tool.schema if tool.strict or use.forced else ANY_ARGUMENTS)}")
    return lines


def _json(schema: Mapping[str, object]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': jsonschema.LAYOUT})}"


def _more(use: ToolUse, joint: str) -> str:
    return f" ({json.dumps(joint)} call)*" if use.several else ""


def _terminal(text: str, markers: Mapping[str, int]) -> str:
    return f"<[{markers[text]}]>" if text in markers else json.dumps(text)
