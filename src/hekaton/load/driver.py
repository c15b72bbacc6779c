"""Open loop: every request is sent when its time has come, however many are under way.

An answer that is slow therefore delays nobody else, and what a pool cannot keep up with shows as lateness.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence

from hekaton.errors import HekatonError
from hekaton.facts import Slo
from hekaton.load.api import Api, Ask
from hekaton.load.sample import Sample
from hekaton.sim.workload import Arrival

FIRST_ID, LAST_ID = 10, 200
"""Ids that prompts are made of: every vocabulary has these."""


async def drive(
    api: Api,
    arrivals: Sequence[Arrival],
    slos: Mapping[str, Slo],
    *,
    timeout_s: float,
    seed: int = 0,
    time_scale: float = 1.0,
    ended: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """Sends every arrival at its time, which `time_scale` stretches, and returns when the last one has ended.

    `slos` are by model and on the clock; `ended` is told of each request.
    """
    start_s = time.monotonic()
    random_ids = random.Random(seed)
    samples: list[Sample] = []
    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            at_s = start_s + arrival.arrival_s * time_scale
            await asyncio.sleep(at_s - time.monotonic())
            prompt = tuple(random_ids.randrange(FIRST_ID, LAST_ID) for _ in range(arrival.input_tokens))
            ask = Ask(arrival.model, prompt, arrival.output_tokens, slos[arrival.model], timeout_s)
            samples.append(_sample(arrival, slos[arrival.model], time_scale))
            group.create_task(_ask(api, ask, samples[-1], at_s, ended))
    return samples


def _sample(arrival: Arrival, slo: Slo, time_scale: float) -> Sample:
    return Sample(arrival.model, arrival.arrival_s * time_scale, arrival.input_tokens, arrival.output_tokens, slo)


async def _ask(api: Api, ask: Ask, sample: Sample, at_s: float, ended: Callable[[Sample], None]) -> None:
    sample.sent_late_s = time.monotonic() - at_s
    try:
        async for count in api.tokens(ask):
            sample.token_times_s += [time.monotonic() - at_s] * count
    except HekatonError as error:
        sample.status = error.code.name
    sample.end_s = time.monotonic() - at_s
    ended(sample)
