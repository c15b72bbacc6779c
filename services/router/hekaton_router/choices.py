"""Several outputs of one prompt: a request each, and one stream for all of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from hekaton.facts import RequestRecord
from hekaton.v1 import inference_pb2 as pb

Events = AsyncGenerator[pb.GenerateResponse]


def choice_id(request_id: str, choice: int) -> str:
    """The first output has the id that the client knows."""
    return f"{request_id}.{choice}" if choice else request_id


def records_of(record: RequestRecord) -> list[RequestRecord]:
    """A record for each output. Seed and prompt are the same, the choice is part of the key of the randomness."""
    others = [
        replace(
            record,
            request_id=choice_id(record.request_id, choice),
            sampling=replace(record.sampling, choice=choice),
            choices=1,
        )
        for choice in range(1, record.choices)
    ]
    return [record, *others]


async def merged(outputs: Sequence[Events]) -> Events:
    """Every event of all outputs as it comes, and one acceptance. The first error ends all of them."""
    async with AsyncExitStack() as stack:
        for output in outputs:
            await stack.enter_async_context(aclosing(output))
        accepted = [await anext(output) for output in outputs]
        yield accepted[0]
        waiting = {_next(output): output for output in outputs}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    output = waiting.pop(task)
                    if (event := task.result()) is not None:
                        waiting[_next(output)] = output
                        yield event
        finally:
            # A generator is closed only when nobody waits for it any more.
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)


def _next(output: Events) -> asyncio.Task[pb.GenerateResponse | None]:
    async def event() -> pb.GenerateResponse | None:
        return await anext(output, None)

    return asyncio.create_task(event())
