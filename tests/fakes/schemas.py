"""Random JSON schemas whose longest instance is short, so that no output has to be cut."""

import random

WORDS = ("age", "name", "color", "size", "tags", "ok")


def schema_of(seed: int) -> dict[str, object]:
    """An object in any case. The longest instance has some 300 bytes."""
    generator = random.Random(seed)
    return _object(generator, 2)


def _object(generator: random.Random, depth: int) -> dict[str, object]:
    names = generator.sample(WORDS, generator.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _any(generator, depth - 1) for name in names},
        "required": generator.sample(names, generator.randint(0, len(names))),
        "additionalProperties": False,
    }


def _any(generator: random.Random, depth: int) -> dict[str, object]:
    kinds = ["boolean", "null", "integer", "number", "string", "pattern", "enum", "const"]
    kind = generator.choice([*kinds, "array", "object", "anyOf"] if depth else kinds)
    low = generator.randint(-50, 50)
    match kind:
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": low + generator.randint(0, 1000)}
        case "number":
            return {"enum": [low, low / 4]}
        case "string":
            return {"type": "string", "maxLength": generator.randint(0, 4)}
        case "pattern":
            return {"type": "string", "pattern": generator.choice(["^[a-c]{2,5}$", "^\\d{3}-\\d{2}$", "^(yes|no)$"])}
        case "enum":
            return {"enum": ["red", 4, None, [True]]}
        case "const":
            return {"const": {"a": [1, "é"]}}
        case "array":
            return {"type": "array", "items": _any(generator, 0), "minItems": 1, "maxItems": generator.randint(1, 3)}
        case "object":
            return _object(generator, 1)
        case "anyOf":
            return {"anyOf": [_any(generator, 0), _any(generator, 0)]}
    return {"type": kind}
