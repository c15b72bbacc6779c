"""Where a call is demanded every output is one, as the parser reads it, and its arguments follow their schema."""

import json
from dataclasses import replace

import jsonschema
import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from hekaton.engine.grammar import Constraint, Vocabulary
from hekaton.engine.tiny import byte_tokenizer
from hekaton.errors import InvalidArgument
from hekaton_router.chat import ChatTemplate
from hekaton_router.detokenizer import Decoding
from hekaton_router.tokenization import TextCodec
from hekaton_router.tools import grammar
from hekaton_router.tools.asked import Tool, ToolUse
from hekaton_router.tools.formats import FORMATS, Format
from hekaton_router.tools.parser import CallParser, Written

EOS = 256
WEATHER = Tool(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Paris", 'K"ln <b>']}},
    },
    False,
)
TIME = Tool("get_time", "", {"type": "object", "properties": {}, "additionalProperties": False}, False)
NOT = Tool("not", "", {"not": {"type": "null"}}, False)
TOOLS = {tool.name: tool for tool in (WEATHER, TIME)}


def codec_of(form: Format, special: bool) -> TextCodec:
    tokenizer: Tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<end>"])
    if special:
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in form.markers])
    return TextCodec(tokenizer, Decoding(tokenizer), ChatTemplate("", {}))


def spoken(codec: TextCodec, form: Format, use: ToolUse, seed: int, begin: str = "", most: int = 600) -> str:
    """What a model of random logits says after a beginning, as the parser sees it."""
    size = codec.tokenizer.get_vocab_size()
    rules = grammar.grammar_of(form, use, codec.special_ids(form.markers))
    constraint = Constraint("r", rules, Vocabulary(codec.tokenizer.to_str(), size, [EOS]))
    noise = torch.Generator().manual_seed(seed)
    produced = codec.encode(begin)
    while EOS not in produced and len(produced) < most:
        logits = torch.randn(size, generator=noise).masked_fill(constraint.forbidden(produced), float("-inf"))
        produced.append(int(logits.argmax()))
    return codec.decoding_showing(form.markers).decode([one for one in produced if one != EOS])


def read(form: Format, text: str) -> tuple[str, list[tuple[str, object]]]:
    """Text and calls, whose arguments follow their schemas."""
    parser = CallParser(form)
    written = Written().add(parser.push(text)).add(parser.flush())
    calls = [(piece.name, json.loads(piece.arguments)) for piece in written.calls]
    for name, arguments in calls:
        jsonschema.validate(arguments, TOOLS[name].schema)
    return written.text, calls


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_demanded_call_is_made_and_nothing_else(form: Format, special: bool) -> None:
    codec = codec_of(form, special)
    for forced in ((WEATHER,), (TIME,), (WEATHER, TIME)):
        use = ToolUse((WEATHER, TIME), forced, several=False)
        for seed in range(4):
            text, calls = read(form, spoken(codec, form, use, seed))
            assert (text, len(calls)) == ("", 1)
            assert calls[0][0] in [tool.name for tool in forced]


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_several_calls_may_follow_one_another(name: str) -> None:
    form = FORMATS[name]
    codec, use = codec_of(form, special=False), ToolUse((WEATHER, TIME), (WEATHER, TIME))
    counts = set()
    for seed in range(8):
        text, calls = read(form, spoken(codec, form, use, seed))
        assert (text, len(calls) >= 1) == ("", True)
        counts.add(len(calls))
    assert max(counts) > 1


BEGUN = {"hermes": "So.\n<tool_call>", "llama3": '{"name"', "mistral": "So.\n[TOOL_CALLS]"}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_strict_tool_is_called_as_it_should_be_wherever_it_is_called(form: Format, special: bool) -> None:
    codec, use = codec_of(form, special), ToolUse((replace(WEATHER, strict=True), replace(TIME, strict=True)))
    text, calls = read(form, spoken(codec, form, use, 1, BEGUN[form.name], most=200))
    assert len(calls) >= 1
    assert text.startswith("So.\n") or form.bare
    assert len(spoken(codec, form, use, 1, "Any text, <b>[1]</b> {}", most=60)) > 23


def test_a_schema_that_must_be_followed_is_one_that_can_be() -> None:
    grammar.check(ToolUse((WEATHER, NOT)))
    grammar.check(ToolUse((WEATHER, NOT), (WEATHER,)))
    for use in (ToolUse((WEATHER, NOT), (WEATHER, NOT)), ToolUse((WEATHER, replace(NOT, strict=True)))):
        with pytest.raises(InvalidArgument, match=r"^chat\.tools\[1\]\.parameters cannot be followed: .*not"):
            grammar.check(use)
