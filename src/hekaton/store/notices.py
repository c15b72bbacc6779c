"""What a router is told at once, because it would find it out too late: requests that were cancelled elsewhere."""

from collections.abc import Callable
from typing import NoReturn

from redis.asyncio import Redis

from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.tasks import heed_cancellation

WAIT_S = 2.0
"""For a message, before looking whether the connection still lives. Below its reply timeout."""


class Notices:
    """Nobody hears what is said while he does not listen: the store's records are what counts."""

    def __init__(self, redis: Redis, router_id: str, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._channel = keys.cancelled(router_id)

    async def listen(self, hear: Callable[[str], None]) -> NoReturn:
        """Until cancelled: `hear` gets the id of each request as it is cancelled. Raises StoreUnavailable."""
        with translated():
            async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(self._channel)
                while True:
                    message = await subscription.get_message(timeout=WAIT_S)
                    heed_cancellation()
                    if message:
                        hear(message["data"].decode())
