"""What chat templates are given of tools, and which of them know what to do with it."""

import pytest

from hekaton.errors import InvalidArgument
from hekaton_router.chat import ChatTemplate

USER = {"role": "user", "content": "Hi"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
HERMES = """
{%- if tools %}
    {{- "<tools>" }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- "</tools>" }}
{%- endif %}
{%- for message in messages %}
    {{- message.role + ":" + message.content }}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{- "}</tool_call>" }}
    {%- endfor %}
{%- endfor %}"""
LLAMA = "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{{- 'tools' if tools is not none }}"


def test_a_template_is_given_tools_and_calls() -> None:
    template = ChatTemplate(HERMES, {})
    said = template.render([USER, {"role": "assistant", "content": "", "tool_calls": CALLS}], TOOLS)
    shown = '{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}'
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    assert said == f"<tools>{shown}</tools>user:Hiassistant:{call}"
    assert template.render([USER]) == "user:Hi"


def test_without_tools_a_template_is_told_that_there_are_none() -> None:
    template = ChatTemplate(LLAMA, {})
    assert template.knows_tools
    assert (template.render([USER]), template.render([USER], TOOLS)) == ("", "tools")


@pytest.mark.parametrize("source", ["{{ messages }}", "tools", "{{ 'tools' }}", "{{ tools", "{% set tools = 1 %}"])
def test_a_template_that_never_looks_at_tools_knows_none(source: str) -> None:
    template = ChatTemplate(source, {})
    assert not template.knows_tools
    with pytest.raises(InvalidArgument, match=r"^chat\.tools: this model's chat template knows no tools"):
        template.render([USER], TOOLS)
    for message in ({"role": "tool", "content": "1"}, {"role": "assistant", "content": "", "tool_calls": CALLS}):
        with pytest.raises(InvalidArgument, match=r"^chat\.messages\[1\]: this model's chat template knows no tools"):
            template.render([USER, message])


def test_what_nests_too_deeply_is_the_callers_error() -> None:
    nested: dict[str, object] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(InvalidArgument, match="refuses"):
        ChatTemplate(HERMES, {}).render([USER], [nested])
