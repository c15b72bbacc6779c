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
from hekaton_router.tools.formats import FORMATS, HERMES, LLAMA3, MISTRAL, Format
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
        "$defs": {"city": {"enum": ["Paris", 'K"ln <tool_call>']}},
    },
    False,
)
TIME = Tool("get_time", "", {"type": "object", "properties": {}, "additionalProperties": False}, False)
NOT = Tool("not", "", {"not": {"type": "null"}}, False)
TOOLS = {tool.name: tool for tool in (WEATHER, TIME)}


MARKERS = pytest.mark.parametrize("markers", ["text", "added", "special"])
"""What a tokenizer makes of them: Qwen adds them to its vocabulary, Mistral makes special tokens of them."""


def codec_of(form: Format, markers: str) -> TextCodec:
    tokenizer: Tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<end>"])
    if markers != "text":
        tokenizer.add_tokens([AddedToken(text, special=markers == "special") for text in form.markers])
    return TextCodec(tokenizer, Decoding(tokenizer), ChatTemplate("", {}))


def spoken(
    codec: TextCodec, form: Format, use: ToolUse, seed: int, begin: str = "", most: int = 600, answer: str = ""
) -> str:
    """What a model of random logits says after a beginning, as the parser sees it."""
    size = codec.tokenizer.get_vocab_size()
    rules = grammar.demanded(form, use, codec, answer)
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


@MARKERS
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_demanded_call_is_made_and_nothing_else(form: Format, markers: str) -> None:
    codec = codec_of(form, markers)
    for forced in ((WEATHER,), (TIME,), (WEATHER, TIME)):
        use = ToolUse((WEATHER, TIME), forced, several=False)
        for seed in range(4):
            text, calls = read(form, spoken(codec, form, use, seed))
            assert (text, len(calls)) == ("", 1)
            assert calls[0][0] in [tool.name for tool in forced]


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_several_calls_may_follow_one_another(name: str) -> None:
    form = FORMATS[name]
    codec, use = codec_of(form, "text"), ToolUse((WEATHER, TIME), (WEATHER, TIME))
    counts = set()
    for seed in range(8):
        text, calls = read(form, spoken(codec, form, use, seed))
        assert (text, len(calls) >= 1) == ("", True)
        counts.add(len(calls))
    assert max(counts) > 1


BEGUN = {"hermes": "So.\n<tool_call>", "llama3": '{"name"', "mistral": "So.\n[TOOL_CALLS]"}


@MARKERS
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_strict_tool_is_called_as_it_should_be_wherever_it_is_called(form: Format, markers: str) -> None:
    codec, use = codec_of(form, markers), ToolUse((replace(WEATHER, strict=True), replace(TIME, strict=True)))
    text, calls = read(form, spoken(codec, form, use, 1, BEGUN[form.name], most=200))
    assert len(calls) >= 1
    assert text.startswith("So.\n") or form.bare
    assert len(spoken(codec, form, use, 1, "Any text, <b>[1]</b> {}", most=60)) > 23


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=lambda form: form.name)
def test_with_a_schema_the_output_is_calls_or_an_answer_that_follows_it(form: Format) -> None:
    codec, use = codec_of(form, "added"), ToolUse((replace(WEATHER, strict=True), replace(TIME, strict=True)))
    answer = {"type": "object", "properties": {"mood": {"enum": ["fine", "bad"]}}, "required": ["mood"]}
    closed = json.dumps(answer | {"additionalProperties": False})
    for begin in ("", '{"mood"', form.marker):
        text, calls = read(form, spoken(codec, form, use, 3, begin, answer=closed))
        assert bool(text) != bool(calls)
        if text:
            jsonschema.validate(json.loads(text), answer)


def test_a_schema_that_must_be_followed_is_one_that_can_be() -> None:
    codec = codec_of(HERMES, "text")
    assert grammar.demanded(HERMES, ToolUse((WEATHER, NOT), (WEATHER,)), codec)
    for use in (ToolUse((WEATHER, NOT), (WEATHER, NOT)), ToolUse((WEATHER, replace(NOT, strict=True)))):
        with pytest.raises(InvalidArgument, match=r"^chat\.tools\[1\]\.parameters cannot be followed: .*not"):
            grammar.demanded(HERMES, use, codec)
    with pytest.raises(InvalidArgument, match=r"^sampling\.json_schema leaves no room for calls"):
        grammar.demanded(LLAMA3, ToolUse((WEATHER,)), codec, "{}")
    assert grammar.demanded(LLAMA3, ToolUse((WEATHER,), (WEATHER,)), codec, "{}")
