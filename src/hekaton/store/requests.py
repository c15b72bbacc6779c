"""Requests: their records, and the state machine that every process moves them through.

QUEUED → PLACED → RUNNING → FINISHED, CANCELLED or FAILED; PLACED and RUNNING may go back to QUEUED. `epoch` grows with
every placement, and what is said under an older one changes nothing. Each transition is one script.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import structlog
from redis.asyncio import Redis

from hekaton.errors import RequestNotFound
from hekaton.facts import RequestRecord, RequestState, RequestStats
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.store.records import (
    SUMMARY_FIELDS,
    Holder,
    RequestSummary,
    StoredRequest,
    Unreadable,
    pack,
    state,
    summary,
    unpack,
)
from hekaton.store.scripts import Script, convert

log = structlog.get_logger(__name__)
RETENTION_S = 600.0
CHECKPOINT_BATCH = 256
"""Requests in one checkpoint script, so that it holds up nobody."""
Produced = tuple[str, int, Sequence[int]]
"""Request id, epoch, ids of all tokens produced so far."""
Placement = tuple[str, str, str]
"""Ids of a request, of its queue entry and of a worker."""
T = TypeVar("T")
_Holders = tuple[tuple[RequestState, str, int], ...]


class Requests:
    """All methods raise StoreUnavailable if Redis is away; the transition may have happened nevertheless."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0, *, retention_s: float = RETENTION_S) -> None:
        self._redis = redis
        self._keys = keys
        self._retention_ms = round(retention_s * 1000)
        self._accept = Script(redis, "accept")
        self._place = Script(redis, "place")
        self._discard = Script(redis, "discard")
        self._start = Script(redis, "start")
        self._finish = Script(redis, "finish")
        self._cancel = Script(redis, "cancel")
        self._requeue = Script(redis, "requeue")
        self._checkpoint = Script(redis, "checkpoint")
        self._adopt = Script(redis, "adopt")
        self._strike = Script(redis, "strike")

    async def accept(self, record: RequestRecord, prompt: Sequence[int], max_queued: int) -> bool:
        """Stores a new request and queues it. False if its id is known already.

        Raises ResourceExhausted if `max_queued` requests wait.
        """
        return await self._create(record, prompt, max_queued=max_queued)

    async def put_back(
        self,
        record: RequestRecord,
        prompt: Sequence[int],
        produced: Sequence[int],
        *,
        epoch: int,
        age_s: float,
        router_id: str,
    ) -> bool:
        """Queues an accepted request whose record has vanished with an emptied Redis. False if it is known after all.

        `epoch` is the last one that its router saw, so that the next placement is above every earlier one.
        """
        return await self._create(record, prompt, produced=produced, epoch=epoch, age_s=age_s, router_id=router_id)

    async def load(self, request_id: str) -> StoredRequest | None:
        """Everything about a request, its token ids included. Raises Unreadable."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hmget(self._keys.request(request_id), [*SUMMARY_FIELDS, "prompt", "produced"])
                now, fields = await pipe.execute()
        if not any(fields):
            return None
        *head, prompt, produced = fields
        return StoredRequest(summary(now, head), prompt=unpack(prompt), produced=unpack(produced))

    async def peek(self, request_ids: Sequence[str]) -> dict[str, RequestSummary]:
        """Records, states and lengths of those requests that exist and can be read."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                for request_id in request_ids:
                    pipe.hmget(self._keys.request(request_id), SUMMARY_FIELDS)
                now, *replies = await pipe.execute()
        summaries = {}
        for request_id, fields in zip(request_ids, replies, strict=True):
            try:
                if any(field is not None for field in fields):
                    summaries[request_id] = summary(now, fields)
            except Unreadable as error:
                log.error(error.message, request_id=request_id)
        return summaries

    async def states(self, request_ids: Sequence[str]) -> dict[str, tuple[RequestState, str]]:
        """State and router of those requests that exist; one that cannot be read is FAILED."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for request_id in request_ids:
                    pipe.hmget(self._keys.request(request_id), "state", "router")
                replies = await pipe.execute()
        found = zip(request_ids, replies, strict=True)
        return {name: (state(stored), (router or b"").decode()) for name, (stored, router) in found if stored}

    async def place(self, request_id: str, entry_id: str, worker_id: str, term: int) -> int | None:
        """QUEUED → PLACED; the queue entry is gone in any case. Returns the new epoch, None if it no longer waits.

        Raises StaleTerm if a newer leader is known.
        """
        [epoch] = await self.place_all([(request_id, entry_id, worker_id)], term)
        return epoch

    async def place_all(self, placements: Sequence[Placement], term: int) -> list[int | None]:
        """`place` for each of them, in one exchange."""
        keys = self._keys
        calls = [
            (
                (keys.request(request_id), keys.queue, keys.term, keys.held(worker_id)),
                (request_id, entry, worker_id, term),
            )
            for request_id, entry, worker_id in placements
        ]
        epochs = await self._place.each(tuple[int, ...], calls)
        return [epoch[0] if epoch else None for epoch in epochs]

    async def discard(self, request_id: str, entry_id: str, term: int) -> None:
        """Takes an entry from the queue whose request is gone, or cannot be read and so → FAILED (INTERNAL).

        Raises StaleTerm if a newer leader is known.
        """
        keys = (*self._request_and_queue(request_id), self._keys.term)
        reason = Unreadable.reason
        await self._discard(bool, keys, request_id, entry_id, term, reason, self._retention_ms, self._keys.held_prefix)

    async def start(self, request_id: str, epoch: int) -> bool:
        """PLACED → RUNNING. False if the epoch is stale or the request has ended."""
        return await self._start(bool, (self._keys.request(request_id),), epoch)

    async def finish(
        self,
        request_id: str,
        epoch: int,
        state: RequestState,
        *,
        reason: str,
        stats: RequestStats | None = None,
        produced: Sequence[int] | None = None,
    ) -> RequestState:
        """Any live state → the terminal `state`, if the epoch holds. Returns the state that holds now.

        `produced` are all tokens of the request, so that any router can deliver them.

        Another state than `state` says that somebody else ended or moved the request. Raises RequestNotFound.
        """
        if not state.terminal:
            raise ValueError(f"{state} is not a terminal state")
        packed = msgspec.json.encode(stats) if stats is not None else b""
        output = (b"", "") if produced is None else (pack(produced), len(produced))
        tail = (state, reason, packed, self._retention_ms, self._keys.held_prefix, *output)
        holds = await self._finish(
            tuple[RequestState, ...], self._request_and_queue(request_id), request_id, epoch, *tail
        )
        return _known(request_id, holds)

    async def cancel(self, request_id: str, router_id: str = "", *, teller: str = "") -> Holder:
        """Any live state → CANCELLED; says who held it. A request that has ended stays as it is.

        With a `router_id`, only if its tokens go there. The router that they go to is told at once, unless it is the
        `teller`. Raises RequestNotFound.
        """
        keys = self._request_and_queue(request_id)
        tail = (self._retention_ms, self._keys.held_prefix, router_id, self._keys.cancelled_prefix, teller or router_id)
        return Holder(*_known(request_id, await self._cancel(_Holders, keys, request_id, *tail)))

    async def adopt(self, request_id: str, router_id: str) -> Holder:
        """The tokens of a live request go to this router from now on. Raises RequestNotFound."""
        keys = (self._keys.request(request_id),)
        return Holder(*_known(request_id, await self._adopt(_Holders, keys, router_id)))

    async def strike(self, request_id: str, epoch: int) -> int:
        """An engine died by itself in a step with it: how many have; 0 if the epoch is over."""
        return await self._strike(int, (self._keys.request(request_id),), epoch)

    async def requeue(
        self, request_id: str, epoch: int, *, term: int, lost: bool, max_attempts: int
    ) -> RequestState | None:
        """PLACED or RUNNING → QUEUED, or → FAILED (WORKER_LOST) at the `max_attempts`-th loss; only losses count.

        Returns the state that holds now, None if the epoch is stale or the request unknown. Raises StaleTerm.
        """
        keys = (*self._request_and_queue(request_id), self._keys.term)
        tail = (term, int(lost), max_attempts, self._retention_ms, self._keys.held_prefix)
        holds = await self._requeue(tuple[RequestState, ...], keys, request_id, epoch, *tail)
        return holds[0] if holds else None

    async def checkpoint(self, items: Sequence[Produced]) -> tuple[str, ...]:
        """Stores the ids produced so far. Stale epochs and ended requests are left alone.

        Returns the requests that the store does not know: their router puts them back.
        """
        unknown: list[str] = []
        for start in range(0, len(items), CHECKPOINT_BATCH):
            batch = items[start : start + CHECKPOINT_BATCH]
            keys = [self._keys.request(request_id) for request_id, _, _ in batch]
            args = [part for _, epoch, ids in batch for part in (epoch, pack(ids), len(ids))]
            places = await self._checkpoint(tuple[int, ...], keys, *args)
            unknown += (batch[place - 1][0] for place in places)
        return tuple(unknown)

    async def held_by(self, worker_id: str) -> tuple[tuple[str, int], ...]:
        """Ids and epochs of the requests that are PLACED or RUNNING on a worker."""
        with translated():
            held = await self._redis.hgetall(self._keys.held(worker_id))
        return tuple(convert(held, dict[str, int]).items())

    async def holders(self) -> frozenset[str]:
        """Ids of all workers that hold something, dead ones included. Walks over all keys: for a takeover only."""
        prefix = self._keys.held_prefix
        with translated():
            names = [name.decode() async for name in self._redis.scan_iter(match=f"{prefix}*", count=1000)]
        return frozenset(name.removeprefix(prefix) for name in names)

    async def queued(self) -> int:
        """How many requests wait for a worker."""
        with translated():
            return int(await self._redis.xlen(self._keys.queue))

    async def _create(
        self,
        record: RequestRecord,
        prompt: Sequence[int],
        *,
        produced: Sequence[int] = (),
        epoch: int = 0,
        age_s: float = 0.0,
        max_queued: int | None = None,
        router_id: str = "",
    ) -> bool:
        progress = (pack(produced), len(produced), epoch, 0, round(age_s * 1000))
        content = (record.request_id, msgspec.json.encode(record), pack(prompt))
        keys = self._request_and_queue(record.request_id)
        most = "" if max_queued is None else max_queued
        return await self._accept(bool, keys, *content, *progress, most, router_id or record.router_id)

    def _request_and_queue(self, request_id: str) -> tuple[str, str]:
        return self._keys.request(request_id), self._keys.queue


def _known(request_id: str, reply: tuple[T, ...]) -> T:
    if not reply:
        raise RequestNotFound(f"request {request_id} is not known; it ended long ago or never was")
    return reply[0]
