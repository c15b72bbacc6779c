"""Where the KV is of requests that have left one worker and not reached the next."""

from collections import OrderedDict

from hekaton.v1 import worker_pb2 as pb

MOST = 10_000


class Parcels:
    """The newest of each request; the oldest are forgotten, and their KV is computed again."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._left: OrderedDict[str, pb.Released] = OrderedDict()

    def put(self, released: pb.Released) -> None:
        """A worker has let go of a request, with its KV or without."""
        self._left.pop(released.request_id, None)
        if released.HasField("parcel"):
            self._left[released.request_id] = released
            if len(self._left) > self._most:
                self._left.popitem(last=False)

    def take(self, request_id: str, epoch: int) -> pb.Parcel | None:
        """For the attempt of this epoch, if it follows the one that has left it: another knows other tokens."""
        released = self._left.pop(request_id, None)
        return released.parcel if released and released.epoch + 1 == epoch else None
