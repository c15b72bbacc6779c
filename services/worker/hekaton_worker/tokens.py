"""The token streams: one to every router that has requests here."""

import asyncio
import math
from collections.abc import Iterable, Sequence

from hekaton.errors import Unavailable
from hekaton.facts import Logprobs
from hekaton.rpc import convert
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.attempt import Attempt
from hekaton_worker.outbox import LIMIT, Outbox

UNKNOWN = Logprobs(math.nan)
"""Of a token that an earlier attempt chose and whose router did not deliver it."""
Tokens = Outbox[pb.StreamTokensResponse]


class TokenStreams:
    """Each router's newest stream. What a router misses while it has none is sent when it asks for it."""

    def __init__(self) -> None:
        self._streams: dict[str, Tokens] = {}
        self._absent_since_s: dict[str, float] = {}
        self._closed = False

    def open(self, router_id: str, attempts: Iterable[Attempt]) -> Tokens:
        """Replaces the router's older stream and announces its requests anew. Raises Unavailable at the end."""
        if self._closed:
            raise Unavailable("this worker stops; its requests go elsewhere")
        if older := self._streams.get(router_id):
            older.close()
        own = [attempt for attempt in attempts if attempt.router_id == router_id]
        stream = self._streams[router_id] = Outbox(LIMIT + len(own))
        self._absent_since_s.pop(router_id, None)
        for attempt in own:
            attempt.following = False
            self.announce(attempt)
        return stream

    def forget(self, router_id: str, stream: Tokens) -> None:
        """The stream has ended."""
        stream.close()
        if self._streams.get(router_id) is stream:
            del self._streams[router_id]

    def __contains__(self, router_id: str) -> bool:
        return router_id in self._streams

    def absent_s(self, router_id: str) -> float:
        """How long a router has had no stream: since the last one ended, or since this was asked first."""
        if router_id in self:
            return 0.0
        now_s = asyncio.get_running_loop().time()
        return now_s - self._absent_since_s.setdefault(router_id, now_s)

    @property
    def awaited(self) -> set[str]:
        """Routers that have no stream and may have requests here."""
        return set(self._absent_since_s)

    def await_no_more(self, router_id: str) -> None:
        """Nothing here depends on how long a router has been away."""
        self._absent_since_s.pop(router_id, None)

    def close(self) -> None:
        """Ends all streams once they have sent what waits."""
        self._closed = True
        for stream in self._streams.values():
            stream.close()

    def announce(self, attempt: Attempt) -> None:
        assigned = pb.Assigned(request_id=attempt.request_id, epoch=attempt.epoch, kept=attempt.kept)
        self._send(attempt.router_id, pb.StreamTokensResponse(assigned=assigned))

    def follow(self, attempt: Attempt, known: int) -> None:
        """The router has `known` tokens: it gets the others now, and what comes as it comes."""
        attempt.following = True
        if len(attempt.ids) > known:
            missing = _tokens(attempt, known, attempt.ids[known:])
            self._step(attempt.router_id, [missing])
        self.end(attempt)

    def step(self, produced: Iterable[tuple[Attempt, int, Sequence[int]]]) -> None:
        """What one engine step produced (attempt, index of its first new token, tokens): one message a router."""
        by_router: dict[str, list[pb.RequestTokens]] = {}
        for attempt, first_index, token_ids in produced:
            if attempt.following:
                tokens = _tokens(attempt, first_index, token_ids)
                by_router.setdefault(attempt.router_id, []).append(tokens)
        for router_id, requests in by_router.items():
            self._step(router_id, requests)

    def end(self, attempt: Attempt) -> None:
        """Sends the terminal event if there is one and the router has all that comes before it."""
        if attempt.following and attempt.ended:
            self._send(attempt.router_id, pb.StreamTokensResponse(ended=attempt.ended))

    def _step(self, router_id: str, requests: list[pb.RequestTokens]) -> None:
        self._send(router_id, pb.StreamTokensResponse(step=pb.StepTokens(requests=requests)))

    def _send(self, router_id: str, message: pb.StreamTokensResponse) -> None:
        if stream := self._streams.get(router_id):
            stream.put(message)


def _tokens(attempt: Attempt, first_index: int, token_ids: Sequence[int]) -> pb.RequestTokens:
    tokens = pb.RequestTokens(
        request_id=attempt.request_id, epoch=attempt.epoch, first_index=first_index, token_ids=token_ids
    )
    if attempt.record.sampling.logprobs is not None:
        indices = range(first_index, first_index + len(token_ids))
        tokens.logprobs.extend(convert.logprobs_to_pb(attempt.logprobs.get(index, UNKNOWN)) for index in indices)
    return tokens
