"""gRPC adapter: WorkerService over the control, the token streams and the desk."""

import asyncio
from collections.abc import AsyncIterator, Callable

from hekaton.errors import InvalidArgument
from hekaton.rpc.convert import turn_to_pb
from hekaton.rpc.interceptors import Context
from hekaton.rpc.server import Servicer
from hekaton.tasks import dismiss
from hekaton.v1 import worker_pb2 as pb
from hekaton.v1 import worker_pb2_grpc
from hekaton_worker.control import Control, Reports
from hekaton_worker.crew import Crew
from hekaton_worker.desk import Desk
from hekaton_worker.flow import Flow
from hekaton_worker.tokens import TokenStreams
from hekaton_worker.turns import Turns


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """On both streams a task reads what comes in, and its end ends the stream."""

    def __init__(
        self,
        flow: Flow,
        desk: Desk,
        control: Control,
        streams: TokenStreams,
        turns: Turns,
        crew: Crew,
        yielding: Callable[[pb.Yielding], None],
    ) -> None:
        self._flow = flow
        self._desk = desk
        self._control = control
        self._streams = streams
        self._turns = turns
        self._crew = crew
        self._yielding = yielding

    async def Control(
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        first = await anext(request_iterator, pb.ControlRequest())
        if not first.HasField("hello"):
            raise InvalidArgument("the first command is a hello")
        reports = self._control.open(first.hello.term)
        reader = self._crew.start(self._obey(request_iterator, reports), "control")
        try:
            while report := await reports.get():
                yield report
            _raise_wrong(reader)
        finally:
            reports.close()
            dismiss(reader)

    async def StreamTokens(
        self, request_iterator: AsyncIterator[pb.StreamTokensRequest], context: Context
    ) -> AsyncIterator[pb.StreamTokensResponse]:
        first = await anext(request_iterator, pb.StreamTokensRequest())
        router_id = first.hello.router_id
        if not router_id:
            raise InvalidArgument("the first message is a hello with a router_id")
        stream = self._streams.open(router_id, self._desk)
        self._desk.announced(router_id)
        reader = self._crew.start(self._listen(request_iterator, router_id, stream.close), f"router {router_id}")
        try:
            while message := await stream.get():
                yield message
            _raise_wrong(reader)
        finally:
            dismiss(reader)
            self._streams.forget(router_id, stream)
            self._desk.await_router(router_id)

    async def WatchTurns(self, request: pb.WatchTurnsRequest, context: Context) -> AsyncIterator[pb.WatchTurnsResponse]:
        async for turn in self._turns.watch(request.history):
            yield pb.WatchTurnsResponse(turn=turn_to_pb(turn))

    async def _obey(self, commands: AsyncIterator[pb.ControlRequest], reports: Reports) -> InvalidArgument | None:
        """To the end of the stream; returns what is wrong with it."""
        try:
            async for command in commands:
                if not self._control.commands(reports):
                    break
                match command.WhichOneof("command"):
                    case "assign":
                        self._flow.assign(command.assign)
                    case "revoke":
                        self._flow.revoke(command.revoke)
                    case "yielding":
                        self._yielding(command.yielding)
        except InvalidArgument as error:
            return error
        finally:
            reports.close()
        return None

    async def _listen(
        self, messages: AsyncIterator[pb.StreamTokensRequest], router_id: str, close: Callable[[], None]
    ) -> InvalidArgument | None:
        """The same of a router's stream."""
        try:
            async for message in messages:
                match message.WhichOneof("message"):
                    case "produced":
                        self._desk.produced(message.produced, router_id)
                    case "stop":
                        self._desk.stop(message.stop, router_id)
                    case "cancel":
                        self._desk.cancel(message.cancel, router_id)
                    case "adopt":
                        self._desk.adopt(message.adopt.request_id, router_id)
        except InvalidArgument as error:
            return error
        finally:
            close()
        return None


def _raise_wrong(reader: asyncio.Task[InvalidArgument | None]) -> None:
    """Ends a stream with what its reader found wrong with it."""
    if reader.done() and not reader.cancelled() and (wrong := reader.result()):
        raise wrong


def servicer(adapter: WorkerServicer) -> Servicer:
    return Servicer(
        "hekaton.v1.WorkerService",
        lambda server: worker_pb2_grpc.add_WorkerServiceServicer_to_server(adapter, server),
    )
