"""Lua scripts: every transition over several keys is one of them, and so atomic.

They take times from the server's clock. `lib.lua` comes before each. redis-py loads a script again when the server
has forgotten it (restart, SCRIPT FLUSH).
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from hekaton.store.connect import translated

T = TypeVar("T")
Argument = str | bytes | int | float
Call = tuple[Sequence[str], Sequence[Argument]]
"""Keys and arguments."""


class Script:
    """One registered script."""

    def __init__(self, redis: Redis, name: str) -> None:
        folder = files("hekaton.store") / "lua"
        source = (folder / "lib.lua").read_text() + (folder / f"{name}.lua").read_text()
        self._redis = redis
        self._run = redis.register_script(source)

    async def __call__(self, reply: type[T], keys: Sequence[str], *args: Argument, binary: bool = False) -> T:
        """Runs it and checks its reply against the type `reply`, in which strings are `bytes` if `binary`.

        Raises StoreUnavailable, or the error that the script's refusal names.
        """
        with translated():
            raw: object = await self._run(keys=keys, args=args)
        return msgspec.convert(raw, reply, strict=False) if binary else convert(raw, reply)

    async def each(self, reply: type[T], calls: Sequence[Call]) -> list[T]:
        """Runs it for every call in turn, in one exchange; their replies. Each call is atomic, all together are not.

        Raises what the first of them raises that fails; the others may have been run.
        """
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for keys, args in calls:
                    pipe.evalsha(self._run.sha, len(keys), *keys, *args)
                replies = await pipe.execute(raise_on_error=False)
            for place, (raw, (keys, args)) in enumerate(zip(replies, calls, strict=True)):
                if isinstance(raw, NoScriptError):
                    replies[place] = await self._run(keys=keys, args=args)
                elif isinstance(raw, Exception):
                    raise raw
        return [convert(raw, reply) for raw in replies]


def convert(raw: object, reply: type[T]) -> T:
    """An answer of Redis as a `reply`, in which strings are text. Digits become numbers where numbers are asked for."""
    return msgspec.convert(_text(raw), reply, strict=False)


def _text(raw: object) -> object:
    if isinstance(raw, bytes):
        return raw.decode()
    if isinstance(raw, list):
        return [_text(item) for item in raw]
    if isinstance(raw, dict):
        return {_text(name): _text(value) for name, value in raw.items()}
    return raw
