"""One token stream to every live worker."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial

import grpc.aio
import structlog

from hekaton.errors import Diverged, HekatonError
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import CODES, from_status
from hekaton.rpc.tls import ClientTls, explain
from hekaton.tasks import forever
from hekaton.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from hekaton_router.live import LiveRequest, LiveRequests, OutOfSequence
from hekaton_router.perworker import PerWorker
from hekaton_router.settler import Settler

log = structlog.get_logger(__name__)
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
Outgoing = asyncio.Queue[worker_pb2.StreamTokensRequest | None]
"""What is sent on one stream; None ends it."""


class Link:
    """The stream to one worker, opened again as long as the worker is listed.

    On every opening the worker announces this router's requests anew, so nothing has to be remembered here: a
    request that is not live any more is cancelled when it is announced.
    """

    def __init__(
        self,
        router_id: str,
        worker_id: str,
        address: str,
        requests: LiveRequests,
        settler: Settler,
        tls: ClientTls | None,
    ) -> None:
        self._settler = settler
        self.worker_id = worker_id
        self.address = address
        self._tls = tls
        self._router_id = router_id
        self._requests = requests
        self._delay_s = RETRY_MIN_S
        self._outgoing = Outgoing()

    def cancel(self, request_id: str, *, own: bool = True) -> None:
        """Asks the worker to end a request; an `own` one only if its tokens come here.

        Lost if the link is down: the next announcement asks again.
        """
        cancel = worker_pb2.CancelOnWorker(request_id=request_id, own=own)
        self._outgoing.put_nowait(worker_pb2.StreamTokensRequest(cancel=cancel))

    def adopt(self, request_id: str) -> None:
        """Asks the worker for the tokens of a request."""
        adopt = worker_pb2.Adopt(request_id=request_id)
        self._outgoing.put_nowait(worker_pb2.StreamTokensRequest(adopt=adopt))

    def stop(self, live: LiveRequest) -> None:
        """Tells the worker where an output has ended, if it has. Said again with the next announcement."""
        if live.stopped_at is not None:
            request_id, tokens = live.record.request_id, live.stopped_at
            stop = worker_pb2.StopOnWorker(request_id=request_id, epoch=live.epoch, tokens=tokens)
            self._outgoing.put_nowait(worker_pb2.StreamTokensRequest(stop=stop))

    async def run(self) -> None:
        """Until cancelled."""
        async with open_channel(self.address, tls=self._tls) as channel:
            await forever(partial(self._turn, worker_pb2_grpc.WorkerServiceStub(channel)))

    async def _turn(self, stub: worker_pb2_grpc.WorkerServiceStub) -> float:
        """One stream; returns how long to wait for the next, in seconds."""
        clock = asyncio.get_running_loop().time
        opened_s = clock()
        why = await self._stream(stub)
        log.warning("link lost", worker_id=self.worker_id, address=self.address, why=why)
        lasted = clock() - opened_s > RETRY_MAX_S
        self._delay_s = RETRY_MIN_S if lasted else min(2 * self._delay_s, RETRY_MAX_S)
        return self._delay_s

    async def _stream(self, stub: worker_pb2_grpc.WorkerServiceStub) -> str:
        """One stream, until it ends; says why it did."""
        outgoing = self._outgoing = Outgoing()
        call = stub.StreamTokens(self._messages(outgoing))
        try:
            async for message in call:
                self._take(message)
            return "ended by the worker"
        except grpc.aio.AioRpcError as error:
            details = error.details() or error.code().name
            return explain(details, self.address) or details
        except OutOfSequence as error:
            return str(error)
        finally:
            call.cancel()
            outgoing.put_nowait(None)

    async def _messages(self, outgoing: Outgoing) -> AsyncIterator[worker_pb2.StreamTokensRequest]:
        yield worker_pb2.StreamTokensRequest(hello=worker_pb2.StreamTokensHello(router_id=self._router_id))
        while message := await outgoing.get():
            yield message

    def _take(self, message: worker_pb2.StreamTokensResponse) -> None:
        """Never waits: a slow client must not hold up the others' tokens."""
        match message.WhichOneof("message"):
            case "assigned":
                self._assigned(message.assigned)
            case "step":
                self._step(message.step)
            case "ended":
                self._ended(message.ended)

    def _assigned(self, assigned: worker_pb2.Assigned) -> None:
        live = self._requests.get(assigned.request_id)
        if live.end if live else not assigned.kept:
            self.cancel(assigned.request_id)
        elif live and live.assign(assigned.epoch, self.worker_id):
            produced = worker_pb2.Produced(
                request_id=assigned.request_id, epoch=assigned.epoch, token_ids=live.token_ids
            )
            self._outgoing.put_nowait(worker_pb2.StreamTokensRequest(produced=produced))
            self.stop(live)

    def _step(self, step: worker_pb2.StepTokens) -> None:
        for tokens in step.requests:
            if live := self._requests.get(tokens.request_id):
                live.extend(tokens.epoch, tokens.first_index, tokens.token_ids, tokens.logprobs)
                if isinstance(live.end, Diverged):
                    self.cancel(tokens.request_id)

    def _ended(self, ended: worker_pb2.Ended) -> None:
        live = self._requests.get(ended.request_id)
        if live is None:
            return
        end: inference_pb2.Finished | HekatonError = inference_pb2.Finished(reason=ended.reason, stats=ended.stats)
        if ended.code:
            end = from_status(CODES.get(ended.code, grpc.StatusCode.UNKNOWN), ended.error_reason, ended.error)
        if not ended.unwritten:
            live.finish(ended.epoch, end)
        elif ended.epoch >= live.epoch and not live.end:
            self._settler.settle(live, ended.epoch, live.checked(end))


class Links:
    """The links to the workers that are listed."""

    def __init__(
        self,
        router_id: str,
        requests: LiveRequests,
        settler: Settler,
        group: asyncio.TaskGroup,
        tls: ClientTls | None = None,
    ) -> None:
        self._settler = settler
        self._router_id = router_id
        self._tls = tls
        self._requests = requests
        self._links: dict[str, Link] = {}
        self._tasks = PerWorker(group, self._run)

    def update(self, addresses: Mapping[str, str]) -> None:
        """Links exactly these workers (id → address) from now on."""
        self._tasks.update(addresses)

    def cancel(self, request_id: str, worker_id: str, *, own: bool = True) -> None:
        """Ends a request on the worker that holds it; one that does not know it ignores this."""
        if link := self._links.get(worker_id):
            link.cancel(request_id, own=own)

    def adopt(self, request_id: str, worker_id: str) -> None:
        """Asks the worker that holds a request for its tokens."""
        if link := self._links.get(worker_id):
            link.adopt(request_id)

    def stop(self, live: LiveRequest) -> None:
        """Tells the worker that holds a request where its output has ended."""
        if link := self._links.get(live.worker_id):
            link.stop(live)

    async def _run(self, worker_id: str, address: str) -> None:
        link = Link(self._router_id, worker_id, address, self._requests, self._settler, self._tls)
        self._links[worker_id] = link
        try:
            await link.run()
        finally:
            if self._links.get(worker_id) is link:
                del self._links[worker_id]
