"""What schemathesis does to each body that it has made: it asks for a model that there is, and for a short answer."""

from typing import Any

import schemathesis

MODEL = "sound"
MAX_MODEL_CHARS = 128
TOKENS = 2


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Only of bodies that would be refused for another reason, or not at all."""
    if not isinstance(body, dict):
        return body
    model = body.get("model")
    named = isinstance(model, str) and 0 < len(model) <= MAX_MODEL_CHARS
    limited = any(body.get(name) is not None for name in ("max_tokens", "max_completion_tokens", "min_tokens"))
    return body | ({"model": MODEL} if named else {}) | ({} if limited else {"max_tokens": TOKENS})
