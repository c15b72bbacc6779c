"""Outputs follow their schemas, and are the same when a constraint is made anew at any token."""

import json

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer

from hekaton.engine.grammar import Constraint, Vocabulary
from hekaton.engine.tiny import byte_tokenizer
from hekaton.errors import EngineFailed
from hekaton.jsonschema import grammar_of

EOS = 256
SIZE = 258
SCHEMAS = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": 3, "maximum": 977},
    {"type": "string", "maxLength": 8},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"enum": ["red", 4, None]},
    {"const": {"a": [1]}},
    {"const": {"<mark>": "a <eos> b"}},
    {"enum": ["<mark>", "<eos>", "<é>"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<eos>", "<mark>"])
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.to_str(), SIZE, [EOS])


def produce(schema: str, vocabulary: Vocabulary, *, anew: bool) -> list[int]:
    """What a model of random logits says."""
    noise = torch.Generator().manual_seed(1)
    constraint = Constraint("r", grammar_of(schema), vocabulary)
    produced: list[int] = []
    while EOS not in produced and len(produced) < 400:
        if anew:
            constraint = Constraint("r", grammar_of(schema), vocabulary)
        logits = torch.randn(SIZE, generator=noise).masked_fill(constraint.forbidden(produced), float("-inf"))
        produced.append(int(logits.argmax()))
    return produced


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_follows_its_schema_after_any_interruption(
    schema: dict[str, object], vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    produced = produce(json.dumps(schema), vocabulary, anew=False)
    assert produced[-1] == EOS
    jsonschema.validate(json.loads(tokenizer.decode(produced[:-1])), schema)
    assert produce(json.dumps(schema), vocabulary, anew=True) == produced


def test_goes_back_when_fewer_tokens_are_given(vocabulary: Vocabulary) -> None:
    constraint = Constraint("r", grammar_of('{"const": true}'), vocabulary)
    first = constraint.forbidden([])
    constraint.forbidden([int(first.logical_not().nonzero()[0])])
    assert constraint.forbidden([]).equal(first)


def test_names_the_request_whose_tokens_do_not_follow(vocabulary: Vocabulary) -> None:
    with pytest.raises(EngineFailed, match="request r"):
        Constraint("r", grammar_of('{"const": true}'), vocabulary).forbidden([0])
    with pytest.raises(EngineFailed, match="request r"):
        Constraint("r", grammar_of('{"type": "nothing"}'), vocabulary)
