import asyncio
import time
from collections.abc import AsyncIterator

from hekaton.errors import NoWorker
from hekaton.facts import Slo
from hekaton.load.api import Ask
from hekaton.load.driver import drive
from hekaton.load.sample import Sample
from hekaton.sim.workload import Arrival

SLOS = {"slow": Slo(1.0, 0.1), "gone": Slo(1.0, 0.1)}


class Recorded:
    """Remembers when it was asked; one model answers after a while, the other is not there."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, Ask]] = []

    async def tokens(self, ask: Ask) -> AsyncIterator[int]:
        self.asked.append((time.monotonic(), ask))
        if ask.model == "gone":
            raise NoWorker("nobody serves it")
        yield 1
        await asyncio.sleep(0.2)
        yield 2


async def test_requests_are_sent_at_their_times_however_long_answers_take() -> None:
    api, ended = Recorded(), list[Sample]()
    arrivals = [Arrival(0.0, "slow", 3, 5), Arrival(0.02, "gone", 4, 5), Arrival(0.04, "slow", 3, 5)]
    started_s = time.monotonic()
    samples = await drive(api, arrivals, SLOS, timeout_s=5.0, time_scale=2.0, ended=ended.append)
    sent_s = [at_s - started_s for at_s, _ in api.asked]
    assert all(at_s >= meant_s for at_s, meant_s in zip(sent_s, (0.0, 0.04, 0.08), strict=True))
    # The first answer had not ended when the last request was sent.
    assert sent_s[2] < samples[0].end_s
    assert [len(sample.token_times_s) for sample in samples] == [3, 0, 3]
    assert [sample.status for sample in samples] == ["", "UNAVAILABLE", ""]
    assert len(ended) == 3


async def test_the_same_seed_sends_the_same_prompts() -> None:
    async def prompts(seed: int) -> list[tuple[int, ...]]:
        api = Recorded()
        await drive(api, [Arrival(0.0, "gone", 6, 5)] * 2, SLOS, timeout_s=5.0, seed=seed)
        return [ask.prompt for _, ask in api.asked]

    first = await prompts(1)
    assert [len(prompt) for prompt in first] == [6, 6]
    assert first == await prompts(1) != await prompts(2)
