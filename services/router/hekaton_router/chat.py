"""A checkpoint's chat template: Jinja, in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hekaton.errors import InvalidArgument

Message = Mapping[str, Any]
"""As templates expect it: role and content, and where there are such, tool_calls, tool_call_id and name."""
Tool = Mapping[str, Any]
NO_TOOLS = "this model's chat template knows no tools: choose another model, or do without them"


class ChatTemplate:
    """Its methods may take long: call them off the event loop."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = special_tokens
        self._environment = environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it looks at `tools` anywhere."""
        try:
            tree = self._environment.parse(self.source)
        except TemplateError:
            return False
        return any(one.name == "tools" and one.ctx == "load" for one in tree.find_all(nodes.Name))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """A conversation up to where the model answers. Raises InvalidArgument if the template refuses it."""
        if not self.source:
            raise InvalidArgument("this model has no chat template: send the prompt as text")
        self._check_tools(messages, tools)
        # As templates are used to it: no tools are None.
        given = {"messages": messages, "tools": list(tools) or None, "add_generation_prompt": True}
        try:
            return self._environment.from_string(self.source).render(**given, **self._special_tokens)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"the model's chat template refuses these messages: {error}") from error

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """That nothing is left out without a word."""
        if tools and not self.knows_tools:
            raise InvalidArgument(f"chat.tools: {NO_TOOLS}")
        for index, message in enumerate(messages):
            if ("tool_calls" in message or message["role"] == "tool") and not self.knows_tools:
                raise InvalidArgument(f"chat.messages[{index}]: {NO_TOOLS}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
