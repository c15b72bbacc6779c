"""The requests whose clients are connected to this router."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from hekaton.errors import AlreadyExists, Cancelled, Diverged, HekatonError, ResumedElsewhere
from hekaton.facts import RequestRecord
from hekaton.v1 import common_pb2, inference_pb2


class OutOfSequence(Exception):
    """A worker sent what cannot follow what it sent before: its link must start anew."""


class LiveRequest:
    """The output of one request so far, and how it ended. Links write, the client's call reads.

    A slow client costs memory here only: never more ids than `max_tokens`.
    """

    def __init__(self, record: RequestRecord, token_ids: Sequence[int] = ()) -> None:
        self.record = record
        self.token_ids = list(token_ids)
        self.logprobs: dict[int, common_pb2.TokenLogprobs] = {}
        """By index of their token, if they are asked for."""
        self.reader = 0
        """Which connection reads it: the newest."""
        self.stopped_at: int | None = None
        """With so many tokens the text was complete, as a stop text says."""
        self.epoch = 0
        self.worker_id = ""
        self.end: inference_pb2.Finished | HekatonError | None = None
        self.accepted = False
        """The store knows it, or knew it before it was emptied."""
        self.accepted_s = 0.0
        """On the event loop's clock."""
        self.prompt: Sequence[int] = ()
        """Of an accepted request, to put it back."""
        self.stored_tokens = 0
        """As of the last checkpoint."""
        self.seen_ended = False
        self.timer: asyncio.TimerHandle | None = None
        """At its deadline."""
        self.on_tokens: Callable[[int], None] = lambda count: None
        """Told how many tokens are new, as they come."""
        self.on_end: Callable[[], None] = lambda: None
        self.metered = False
        """Somebody counts its tokens and its end."""
        self._changed = asyncio.Event()

    def assign(self, epoch: int, worker_id: str) -> bool:
        """A worker says that it holds this request; False if a newer attempt is known."""
        if epoch < self.epoch:
            return False
        self.epoch, self.worker_id = epoch, worker_id
        return True

    def extend(
        self,
        epoch: int,
        first_index: int,
        token_ids: Sequence[int],
        logprobs: Sequence[common_pb2.TokenLogprobs] = (),
    ) -> None:
        """Takes what is new of these tokens; an older attempt's are ignored. Raises OutOfSequence on a gap."""
        if epoch != self.epoch or self.end or self.stopped_at is not None:
            return
        known = len(self.token_ids)
        if first_index > known or first_index + len(token_ids) > self.record.sampling.max_tokens:
            raise OutOfSequence(
                f"request {self.record.request_id}: {len(token_ids)} tokens from {first_index} after {known}"
            )
        overlap = self.token_ids[first_index : first_index + len(token_ids)]
        if list(token_ids[: len(overlap)]) != overlap:
            self.stop(self._diverged())
            return
        self.token_ids += token_ids[known - first_index :]
        for index, told in enumerate(logprobs, first_index):
            self.logprobs.setdefault(index, told)
        if len(self.token_ids) > known:
            self.on_tokens(len(self.token_ids) - known)
        self._changed.set()

    def finish(self, epoch: int, end: inference_pb2.Finished | HekatonError) -> None:
        """The attempt's terminal event; an older attempt's is ignored. Raises OutOfSequence if tokens are missing."""
        if epoch >= self.epoch:
            self.stop(self.checked(end))

    def checked(self, end: inference_pb2.Finished | HekatonError) -> inference_pb2.Finished | HekatonError:
        """What an end that its worker tells means here. Raises OutOfSequence if tokens are missing."""
        if self.stopped_at is not None:
            return end
        if isinstance(end, inference_pb2.Finished) and end.stats.completion_tokens < len(self.token_ids):
            end = self._diverged()
        if isinstance(end, inference_pb2.Finished) and end.stats.completion_tokens != len(self.token_ids):
            raise OutOfSequence(
                f"request {self.record.request_id}: ended after {end.stats.completion_tokens} tokens, "
                f"{len(self.token_ids)} have come"
            )
        return end

    def _diverged(self) -> Diverged:
        return Diverged(
            f"request {self.record.request_id}: attempt {self.epoch} differs from what was delivered: send it again"
        )

    def cut(self, tokens: int) -> None:
        """The text was complete with so many tokens: no later one is of this output."""
        self.stopped_at = tokens
        del self.token_ids[tokens:]

    def stop(self, end: inference_pb2.Finished | HekatonError) -> None:
        """Ends the request here, unless it has ended."""
        if self.end is None:
            self.end = end
            self.on_end()
        self._changed.set()

    def outcome(self) -> inference_pb2.Finished:
        """How the request ended; raises what ended it otherwise."""
        if isinstance(self.end, inference_pb2.Finished):
            return self._stopped(self.end) if self.stopped_at is not None else self.end
        raise self.end or Cancelled("the request has not ended")

    def complete(self, token_ids: Sequence[int]) -> None:
        """Takes the whole output, as the store has it."""
        if self.token_ids != list(token_ids[: len(self.token_ids)]):
            self.stop(self._diverged())
        else:
            self.token_ids = list(token_ids)

    def _stopped(self, end: inference_pb2.Finished) -> inference_pb2.Finished:
        """The worker may have ended it for a reason of its own, after more tokens."""
        stopped = inference_pb2.Finished(reason=common_pb2.FINISH_REASON_STOP, stats=end.stats)
        stopped.stats.completion_tokens = len(self.token_ids)
        return stopped

    def attach(self) -> int:
        """A connection begins to read; the one before it ends."""
        self.reader += 1
        self._changed.set()
        return self.reader

    async def more(self, seen: int, reader: int) -> None:
        """Returns when there are more than `seen` tokens, or the end. Raises ResumedElsewhere for an older reader."""
        while reader == self.reader and len(self.token_ids) <= seen and not self.end:
            self._changed.clear()
            await self._changed.wait()
        if reader != self.reader:
            raise ResumedElsewhere(f"another connection reads request {self.record.request_id} now")


class LiveRequests:
    """All of them, by id."""

    def __init__(self) -> None:
        self._requests: dict[str, LiveRequest] = {}

    def add(self, record: RequestRecord, token_ids: Sequence[int] = ()) -> LiveRequest:
        """Raises AlreadyExists. Comes before the store's acceptance: a worker may announce the request at once."""
        if record.request_id in self._requests:
            raise AlreadyExists(f"request {record.request_id} exists: choose another request_id")
        live = self._requests[record.request_id] = LiveRequest(record, token_ids)
        return live

    def get(self, request_id: str) -> LiveRequest | None:
        return self._requests.get(request_id)

    def remove(self, live: LiveRequest) -> None:
        """Nobody asks for it any more, at its deadline neither."""
        if self._requests.get(live.record.request_id) is live:
            del self._requests[live.record.request_id]
        if live.timer:
            live.timer.cancel()

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._requests.values()))

    def __len__(self) -> int:
        return len(self._requests)
