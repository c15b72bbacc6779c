"""One call as a model writes it: a JSON object, read as it comes."""

import json
import re

SPACE = r"\s{0,32}"
MAX_NAME_CHARS = 256
MAX_AWAITED_CHARS = 4096
"""Of an object whose name cannot be known before its end. What is no call then is read again, for markers in it."""
NAME = rf'"name"{SPACE}:{SPACE}("(?:[^"\\]|\\.){{1,{MAX_NAME_CHARS}}}"){SPACE},{SPACE}'
TYPE = rf'(?:"type"{SPACE}:{SPACE}"function"{SPACE},{SPACE})?'
HEAD = re.compile(rf'\{{{SPACE}{TYPE}{NAME}"(?:arguments|parameters)"{SPACE}:{SPACE}(?=\{{)', re.DOTALL)
"""Of an object whose arguments can be given out as they come: all models are taught to write it so."""
FIRST_KEY = re.compile(rf'\{{{SPACE}(?:"([^"\\]{{0,64}})"|[^"\s])')
KEYS = frozenset(("name", "arguments", "parameters", "id", "type", "function"))


class CallObject:
    """Takes text from the first brace on. It has `begun` when its name is known, and then has no way back.

    It is `closed` at the end of the object, or where it breaks off after it has begun; `failed` if it is no call.
    """

    def __init__(self) -> None:
        self.text = ""
        self.name = ""
        self.closed = False
        self.failed = False
        self._depth = 0
        self._in_string = self._escaped = False
        self._arguments = ""
        self._from = 0
        """Where the arguments go on that have not been given out."""
        self._to: int | None = None
        """Where they end."""

    @property
    def begun(self) -> bool:
        return bool(self.name)

    def push(self, text: str) -> int:
        """How many of these characters are the object's."""
        taken, whole, broken = self._scan(text)
        self.text += text[:taken]
        if not self.begun:
            self._begin()
        if not self.begun and (whole or broken or self._is_no_call()):
            self.failed = self._is_no_call() or not (whole and self._read())
        self.closed = not self.failed and (whole or broken)
        return taken

    def new_arguments(self) -> str:
        """What came since it was asked last."""
        if self._arguments:
            new, self._arguments = self._arguments, ""
            return new
        end = len(self.text) if self._to is None else self._to
        new, self._from = self.text[self._from : end], max(self._from, end)
        return new

    def _scan(self, text: str) -> tuple[int, bool, bool]:
        """How far it goes, whether it is whole then, or broken."""
        for index, char in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 1 and self._to is None:
                    self._to = len(self.text) + index + 1
                if self._depth == 0:
                    return index + 1, True, False
            elif char == "<":
                # No JSON: a marker.
                return index, False, True
        return len(text), False, False

    def _begin(self) -> None:
        """Its name, if the arguments follow as they should. They are the first thing in it that is nested."""
        if not (head := HEAD.match(self.text)):
            return
        try:
            self.name = _clean(str(json.loads(head[1], strict=False)))
        except ValueError:
            return
        self._from = head.end()

    def _is_no_call(self) -> bool:
        """There is no need to wait for its end: its first key is none of a call's, or it is too long."""
        first = FIRST_KEY.match(self.text)
        return len(self.text) > MAX_AWAITED_CHARS or (first is not None and first[1] not in KEYS)

    def _read(self) -> bool:
        """Name and arguments of a whole object in which they stand otherwise; False if it is no call."""
        try:
            fields = json.loads(self.text, strict=False)
        except (ValueError, RecursionError):
            return False
        fields = fields.get("function") if isinstance(fields.get("function"), dict) else fields
        name = fields.get("name")
        given = fields.get("arguments", fields.get("parameters", 0))
        if not isinstance(name, str) or not name or not isinstance(given, dict | str | None):
            return False
        self.name = _clean(name)
        # Some models write the arguments as a text that is JSON.
        self._arguments = _clean(given if isinstance(given, str) and given else json.dumps(given or {}))
        self._from = self._to = len(self.text)
        return True


def _clean(text: str) -> str:
    """Without halves of characters, which JSON can spell and UTF-8 cannot."""
    return text.encode(errors="replace").decode()
