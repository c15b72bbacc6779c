"""Small worlds for the simulator, and a run of them that keeps what happened."""

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st

from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import ModelCosts, Turn, WorkerView
from hekaton.sim.agenda import Agenda
from hekaton.sim.device import Device
from hekaton.sim.request import SimRequest
from hekaton.sim.worker import Worker
from hekaton.sim.workload import Arrival

BLOCK_BYTES = 16
"""Of every model here: one byte a token."""


def costs(weight_bytes: int = 100, load_s: float = 1.0) -> ModelCosts:
    """10 ms a step, 1 ms a request, 0.01 ms a token of context; prefill 20 ms and 0.1 ms a token."""
    return ModelCosts(weight_bytes, 1, load_s, 0.02, 1e-4, 0.01, 1e-3, 1e-5)


class Checked:
    """The slack policy, which checks the books of its worker's device at every decision."""

    def __init__(self, min_turn_s: float) -> None:
        self.slack = SlackTurns(min_turn_s)
        self.decisions = 0

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        self.decisions += 1
        weights = sum(view.costs[model].weight_bytes for model in view.resident | view.loading)
        kv = sum(-(-request.context_tokens // BLOCK_BYTES) * BLOCK_BYTES for request in view.requests)
        assert view.free_bytes >= 0, "more memory is used than there is"
        assert weights + kv + view.free_bytes <= view.device_memory_bytes, "something holds memory off the books"
        return self.slack.next_turn(view, now_s)


class World:
    """One worker."""

    def __init__(
        self, known: dict[str, ModelCosts], memory_bytes: int, *, max_steps: int = 1 << 20, min_turn_s: float = 0.4
    ) -> None:
        self.agenda = Agenda()
        self.policy = Checked(min_turn_s)
        self.ended: list[SimRequest] = []
        self.device = Device(memory_bytes, known)
        self.worker = Worker("w", self.device, known, self.policy, self.agenda, self.ended.append, max_steps)

    def run(self, arrivals: Sequence[Arrival]) -> dict[str, list[float]]:
        """Token times by request."""
        for index, one in enumerate(arrivals):
            request = SimRequest(
                f"r{index}", one.model, one.arrival_s, one.input_tokens, one.output_tokens, ttft_s=10.0, tbt_s=0.1
            )
            self.agenda.at(one.arrival_s, partial(self.worker.submit, request))
        self.agenda.run()
        return {request.request_id: request.token_times_s().tolist() for request in self.ended}


def arrivals(models: Sequence[str], longest_tokens: int) -> st.SearchStrategy[list[Arrival]]:
    """Up to a dozen requests within ten seconds."""
    one = st.builds(
        Arrival,
        st.floats(0, 10, allow_nan=False),
        st.sampled_from(models),
        st.integers(1, longest_tokens),
        st.integers(1, longest_tokens),
    )
    return st.lists(one, min_size=1, max_size=12)
