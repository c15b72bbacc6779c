"""The connection to Redis, and what its errors mean here."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hekaton.errors import InvalidArgument, ResourceExhausted, StaleTerm, StoreUnavailable

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0
HEALTH_CHECK_INTERVAL_S = 15
MAX_CONNECTIONS = 32
"""Further callers wait for a free connection, up to REPLY_TIMEOUT_S."""

AWAY_ERRORS = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    TryAgainError,
    OSError,
)
"""What redis-py raises if the server is away, or is there but cannot serve now."""
AWAY = ("MISCONF", "NOREPLICAS", "BUSY ")
"""How replies of that kind begin that redis-py has no class for."""
EXHAUSTED = "EXHAUSTED "
STALE_TERM = "STALETERM "
"""How the error replies of our own scripts begin; the second goes on with the newest term."""


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`. Connects at the first command; close it with `aclose()`.

    Nothing is retried inside: a script whose reply was lost may have run, and only its caller knows what that means.
    Raises InvalidArgument for other schemes.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=REPLY_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError as error:
        raise InvalidArgument(f"bad Redis URL: {error}; use redis://HOST:PORT/0, rediss://… or unix://PATH") from error
    return Redis.from_pool(pool)


@contextmanager
def translated() -> Iterator[None]:
    """Turns redis-py's errors into StoreUnavailable, and refusals of our scripts into the errors that they name."""
    cancellations = _cancellations()
    try:
        yield
    except AWAY_ERRORS as error:
        raise StoreUnavailable(f"Redis cannot be reached: {error}; is it running?") from error
    except RedisError as error:
        text = str(error)
        if text.startswith(EXHAUSTED):
            raise ResourceExhausted(text.removeprefix(EXHAUSTED)) from error
        if text.startswith(STALE_TERM):
            newest, _, why = text.removeprefix(STALE_TERM).partition(" ")
            raise StaleTerm(why, newest=int(newest)) from error
        if text.startswith(AWAY):
            raise StoreUnavailable(f"Redis cannot serve now: {text}") from error
        raise
    finally:
        # redis-py sends under asyncio.wait_for, which before Python 3.12 may swallow a cancellation.
        if _cancellations() > cancellations:
            raise asyncio.CancelledError


def _cancellations() -> int:
    """How often the current task was told to end; 0 outside of an event loop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return task.cancelling() if task else 0
