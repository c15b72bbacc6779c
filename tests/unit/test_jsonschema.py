"""Which schemas outputs can follow."""

import json

import pytest

from fakes.schemas import schema_of
from hekaton import jsonschema
from hekaton.errors import InvalidArgument


def test_what_can_be_followed_is_accepted() -> None:
    for seed in range(50):
        jsonschema.check(json.dumps(schema_of(seed)))
    jsonschema.check(jsonschema.ANY_OBJECT)
    jsonschema.check("{}")


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "no JSON",
        "[]",
        "true",
        '{"type": "nothing"}',
        '{"type": "string", "pattern": "(a"}',
        '{"type": "array", "uniqueItems": true}',
        '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}',
        '{"type": "integer", "minimum": 5, "maximum": 3}',
        '{"$ref": "http://127.0.0.1:1/elsewhere.json"}',
        '{"$ref": "file:///etc/passwd"}',
    ],
)
def test_what_cannot_be_followed_is_refused_and_says_why(schema: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^sampling\.json_schema cannot be followed: \S"):
        jsonschema.check(schema)
