"""The scheduler's side of the worker: who may command it, and what it is told."""

from collections.abc import Callable

from hekaton.errors import InvalidArgument, StaleTerm, Unavailable
from hekaton.store.leadership import MAX_TERM
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.outbox import Outbox

Reports = Outbox[pb.ControlResponse]


class Control:
    """The newest leader's stream. `report` makes a WorkerReport; it is told if that is the first on a stream."""

    def __init__(self, report: Callable[[bool], pb.WorkerReport]) -> None:
        self._report = report
        self._stream: Reports = Outbox()
        self._closed = False
        self._given_back: list[pb.Released] = []
        """What nobody has been told yet."""
        self.term = 0
        """The newest seen."""

    def open(self, term: int) -> Reports:
        """Ends the older stream; the first message of the new one is a report.

        Raises StaleTerm, Unavailable, or InvalidArgument for a term that no leader could ever follow.
        """
        if term > MAX_TERM:
            raise InvalidArgument(f"term {term} is above {MAX_TERM}, the last that there can be")
        if term < self.term:
            raise StaleTerm(f"term {term} is over; stand by and acquire", newest=self.term)
        if self._closed:
            raise Unavailable("this worker stops")
        self.term = term
        self._stream.close()
        self._stream = Outbox()
        first = self._report(True)
        first.given_back.extend(self._given_back)
        self._given_back.clear()
        self._stream.put(pb.ControlResponse(state=first))
        return self._stream

    def commands(self, stream: Reports) -> bool:
        """Whether commands that come on this stream still count."""
        return stream is self._stream and not stream.closed

    def report(self) -> None:
        """Tells the leader what is held and resident."""
        self._stream.put(pb.ControlResponse(state=self._report(False)))

    def released(self, released: pb.Released) -> None:
        """Tells the leader that the worker is done with a request. If nobody leads, the next report says it."""
        if self._stream.closed and (released.refused or released.handed_over or released.moved):
            self._given_back.append(released)
        self._stream.put(pb.ControlResponse(released=released))

    def close(self) -> None:
        self._closed = True
        self._stream.close()
