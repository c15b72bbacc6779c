"""Calls of tools in the text of each format, whatever the pieces in which it comes."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hekaton_router.tools.formats import FORMATS, HERMES, LLAMA3, MISTRAL, call_id, detected
from hekaton_router.tools.parser import CallParser, Written

Calls = list[tuple[str, str]]
CALL = '{"name": "f", "arguments": {"a": 1}}'
OTHER = '{"name": "g", "arguments": {"b": [{}, "}</tool_call>]"]}}'
NESTED = '{"b": [{}, "}</tool_call>]"]}'
BOTH = [("f", '{"a": 1}'), ("g", NESTED)]


def parsed(form: str, pieces: list[str]) -> tuple[str, Calls]:
    """Text and calls; every call begins with its name and goes on without it."""
    parser, out = CallParser(FORMATS[form]), Written()
    calls: dict[int, list[str]] = {}
    for written in [*(parser.push(piece) for piece in pieces), parser.flush()]:
        out.text += written.text
        for piece in written.calls:
            assert bool(piece.name) == (piece.index not in calls)
            calls.setdefault(piece.index, [piece.name, ""])[1] += piece.arguments
    assert list(calls) == list(range(parser.calls))
    return out.text, [(name, arguments) for name, arguments in calls.values()]


CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", BOTH[:1]),
    ("hermes", f"Wait.\n<tool_call>{CALL}</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>\n", "Wait.\n", BOTH),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n then", "\n then", BOTH[:1]),
    ("hermes", f"<tool_call>{CALL}\n{OTHER}</tool_call>", "", BOTH),
    ("hermes", f"<tool_call>{CALL}}}\n</tool_call>", "", BOTH[:1]),
    ("hermes", f"<tool_call>{CALL[:-1]}\n</tool_call>", "", BOTH[:1]),
    ("hermes", f"<tool_call>{CALL}", "", BOTH[:1]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "cut', "", [("f", '{"a": "cut')]),
    ("hermes", '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
    ("hermes", "1 <tool_call 2 <tool_call", "1 <tool_call 2 <tool_call", []),
    ("hermes", "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    ("hermes", f"<tool_call>so <tool_call>{CALL}</tool_call>", "<tool_call>so ", BOTH[:1]),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>so", "\n<tool_call>so", BOTH[:1]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", BOTH[:1]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", BOTH[:1]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>", "<tool_call>{'name': 'f'}</tool_call>", []),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "", [("?", "{}")]),
    ("hermes", CALL, CALL, []),
    ("llama3", f"\n {CALL}", "", BOTH[:1]),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}', "", BOTH[:1]),
    ("llama3", f'{{"type": "function", {CALL[1:]}', "", BOTH[:1]),
    ("llama3", f'{{"type": "function", "function": {CALL}}}', "", BOTH[:1]),
    ("llama3", f"<|python_tag|>{CALL}; {OTHER}", "", BOTH),
    ("llama3", f"<|python_tag|>{CALL}<|python_tag|>{OTHER}", "", BOTH),
    ("llama3", f"Well. {CALL}", f"Well. {CALL}", []),
    ("llama3", f"Well. <|python_tag|>{CALL} done", "Well.  done", BOTH[:1]),
    ("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama3", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    ("llama3", ' {"age": 36, "name": "f", "arguments": {}}', ' {"age": 36, "name": "f", "arguments": {}}', []),
    ("llama3", "{a + b}", "{a + b}", []),
    ("llama3", "  \n", "  \n", []),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {OTHER}]", "", BOTH),
    ("mistral", f"[TOOL_CALLS][{CALL[:-1]}, \"id\": \"123456789\"}}]\n", "", BOTH[:1]),
    ("mistral", f"Yes [1] [TOOL_CALLS]{CALL}", "Yes [1] ", BOTH[:1]),
    ("mistral", f"[TOOL_CALLS][{CALL}, no", ", no", BOTH[:1]),
    ("mistral", "[TOOL_CALLS] are a list", "[TOOL_CALLS] are a list", []),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "outside", "calls"), CASES)
def test_calls_are_read_and_the_text_outside_is_left(form: str, text: str, outside: str, calls: Calls) -> None:
    assert parsed(form, [text]) == (outside, calls)
    assert parsed(form, list(text)) == (outside, calls)


PARTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", '"name"', ": ", "text", "é<", CALL, OTHER),
    *('{"name": "f", "arguments": ', '{"a": 1}', '{"arguments": {}, "name": "g"}', *'[]{}"\\,; \n'),
]


@settings(max_examples=400)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(PARTS), max_size=12), st.data())
@example("hermes", ["<tool_call>", CALL, "</tool_call>", "\n", "<tool_call>", "text"], None)
def test_the_pieces_of_a_text_change_nothing(form: str, parts: list[str], data: st.DataObject | None) -> None:
    text = "".join(parts)
    whole = parsed(form, [text])
    assert parsed(form, list(text)) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6))) if data else [len(text) // 2]
    ends = [*cuts, len(text)]
    assert parsed(form, [text[start:end] for start, end in zip([0, *cuts], ends, strict=True)]) == whole
    if not whole[1]:
        assert whole[0] == text


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.dictionaries(st.text(), st.text())), min_size=1, max_size=3)
)
def test_whatever_a_call_says_comes_back(calls: list[tuple[str, dict[str, str]]]) -> None:
    written = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    for form, text in (
        (HERMES, "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written)),
        (LLAMA3, "; ".join(written)),
        (MISTRAL, f"[TOOL_CALLS][{', '.join(written)}]"),
    ):
        outside, found = parsed(form.name, list(text))
        assert outside == ""
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize("form", ["hermes", "llama3", "mistral"])
def test_what_has_no_name_for_long_is_text(form: str) -> None:
    marker = FORMATS[form].marker
    long, short = [f'{{"arguments": {{"a": "{"x" * size}"}}, "name": "f"}}' for size in (4096, 4000)]
    for pieces in (1, 4000):
        text = f"{marker}{long} {marker}{short}"
        outside, calls = parsed(form, [text[start : start + pieces] for start in range(0, len(text), pieces)])
        assert outside == f"{marker}{long} "
        assert [name for name, _ in calls] == ["f"]


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(HERMES)
    parser.push('<tool_call>{"name": "f", "arguments": {"city": "')
    assert [piece.arguments for piece in parser.push("Par").calls] == ["Par"]
    assert [piece.arguments for piece in parser.push('is"}}').calls] == ['is"}']


def test_where_one_call_is_enough_nothing_comes_after_it() -> None:
    parser = CallParser(MISTRAL, single=True)
    out = parser.push(f"So: [TOOL_CALLS][{CALL}, {OTHER}] and").add(parser.flush())
    assert (out.text, len(out.calls), parser.ended) == ("So: ", 1, True)


def test_a_template_shows_its_format() -> None:
    assert detected("within <tool_call></tool_call> tags") == "hermes"
    assert detected('{{ "[TOOL_CALLS] [" }}') == "mistral"
    assert detected('{{ "<|python_tag|>" }} "parameters": ') == "llama3"
    assert detected('{"name": function name, "parameters": dictionary}') == "llama3"
    assert detected('{"tool_name": name, "parameters": arguments}') == ""
    assert detected("<tool_call>\n<function=f>") == detected("[TOOL_CALLS]f[ARGS]{}") == detected("{{ tools }}") == ""


def test_the_id_of_a_call_is_always_the_same_and_no_others() -> None:
    ids = [call_id(request, index) for request in ("a", "a.1", "b") for index in range(12)]
    assert len(set(ids)) == 36
    assert call_id("a", 0) == ids[0]
    assert all(len(one) == 9 and one.isalnum() for one in ids)
