"""Many requests on one stream: worked on at the same time, answered as it comes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from hekaton.errors import HekatonError
from hekaton.oip import open_inference_pb2 as pb
from hekaton.rpc.errors import known_error
from hekaton.tasks import end
from hekaton_router.oip.answers import failed

MOST_AT_ONCE = 64
"""Requests of one stream. Further ones are read when one of these has ended."""
METHOD = "inference.GRPCInferenceService/ModelStreamInfer"
Answer = Callable[[pb.ModelInferRequest], AsyncGenerator[pb.ModelInferResponse]]
Said = pb.ModelStreamInferResponse | HekatonError | None


async def interleaved(
    requests: AsyncIterator[pb.ModelInferRequest], answer: Answer, *, strict: bool
) -> AsyncGenerator[pb.ModelStreamInferResponse]:
    """Until every request is answered. Closing it ends the work of all.

    A request that fails is told of in the stream; if it is `strict`, its error is raised.
    """
    # An answer is made when the one before it has been taken: a slow reader is not buffered for.
    said: asyncio.Queue[Said] = asyncio.Queue(1)
    work = asyncio.create_task(_all(requests, answer, said, strict))
    try:
        while (one := await said.get()) is not None:
            if isinstance(one, HekatonError):
                raise one
            yield one
    finally:
        await end(work)


async def _all(
    requests: AsyncIterator[pb.ModelInferRequest], answer: Answer, said: asyncio.Queue[Said], strict: bool
) -> None:
    slots = asyncio.Semaphore(MOST_AT_ONCE)
    ended: HekatonError | None = None
    async with asyncio.TaskGroup() as group:
        try:
            await slots.acquire()
            async for request in requests:
                task = group.create_task(_one(request, answer, said, strict))
                task.add_done_callback(lambda _: slots.release())
                await slots.acquire()
        except Exception as error:
            # One that cannot be decoded, for instance. Those before it are answered.
            ended = known_error(error, METHOD)
    await said.put(ended)


async def _one(request: pb.ModelInferRequest, answer: Answer, said: asyncio.Queue[Said], strict: bool) -> None:
    try:
        async with aclosing(answer(request)) as answers:
            async for one in answers:
                await said.put(pb.ModelStreamInferResponse(infer_response=one))
    except Exception as error:
        known = known_error(error, METHOD)
        await said.put(known if strict else failed(request, known))
