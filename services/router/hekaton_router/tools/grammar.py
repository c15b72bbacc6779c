"""Grammars of outputs that must call a tool, or whose calls must follow their schemas.

Lark's syntax as llguidance has it: JSON schemas in it, tokens by their id in angle brackets, and `[lazy]` for a text
that ends where it can.
"""

import json
import re
from collections.abc import Mapping

from hekaton import jsonschema
from hekaton_router.tools.asked import Tool, ToolUse
from hekaton_router.tools.formats import Format

ANY_ARGUMENTS = {"type": "object"}


def check(use: ToolUse) -> None:
    """That every schema can be followed that must be. Raises InvalidArgument. May take long."""
    for index, tool in enumerate(use.tools):
        if tool.strict or tool in use.forced:
            jsonschema.check(json.dumps(tool.schema), f"chat.tools[{index}].parameters")


def grammar_of(form: Format, use: ToolUse, special_ids: Mapping[str, int]) -> str:
    """Of a whole output. `special_ids` are those of the format's markers that are special tokens."""
    opening, closing = (_terminal(text, special_ids) for text in (form.marker, form.closing))
    run, joint = {
        "hermes": (rf'"\n" call "\n" {closing}', r'"\n"'),
        "mistral": (f'" "? "[" call{_more(use, ", ")} {closing}', ""),
        "llama3": ("call", ""),
    }[form.name]
    if use.forced:
        head = opening if not form.bare else ""
        again = f" ({joint} {head} {run})*" if joint and use.several else ""
        start = f"start: {head} {run}{again}"
    else:
        start = _free(form, opening, run)
    return "\n".join((start, *_calls(form, use)))


def _free(form: Format, opening: str, run: str) -> str:
    """Any text, and calls in it as they must be."""
    if form.bare:
        return f"start: {run} | OTHER\nOTHER: /(\\s*[^\\s{{](.|\\n)*)?/ & ~/(.|\\n)*{re.escape(form.marker)}(.|\\n)*/"
    lazy = "" if opening.startswith("<") else "[lazy]"
    return f"start: (lead {run})* TEXT\nlead{lazy}: TEXT {opening}\nTEXT: /(.|\\n)*/"


def _calls(form: Format, use: ToolUse) -> list[str]:
    tools = use.forced or use.tools
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        beginning = f'{{"name": "{tool.name}", "{form.arguments}": '
        lines.append(f'call_{index}: {json.dumps(beginning)} arguments_{index} "}}"')
        lines.append(f"arguments_{index}: %json {json.dumps(_schema(use, tool))}")
    return lines


def _schema(use: ToolUse, tool: Tool) -> dict[str, object]:
    schema = tool.schema if tool.strict or use.forced else ANY_ARGUMENTS
    return {**schema, "x-guidance": jsonschema.LAYOUT}


def _more(use: ToolUse, joint: str) -> str:
    return f" ({json.dumps(joint)} call)*" if use.several else ""


def _terminal(text: str, special_ids: Mapping[str, int]) -> str:
    return f"<[{special_ids[text]}]>" if text in special_ids else json.dumps(text)
