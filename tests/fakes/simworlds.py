"""Small worlds for the simulator, and a run of them that keeps what happened."""

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st

from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import ModelCosts, Turn, WorkerView
from hekaton.sim.agenda import Agenda
from hekaton.sim.device import Device
from hekaton.sim.host import Host, HostSettings
from hekaton.sim.request import SimRequest
from hekaton.sim.worker import Worker
from hekaton.sim.workload import Arrival

BANDWIDTH_BYTES_PER_S = 100.0
"""A model of `costs()` is there in a second; KV is one byte a token."""


def costs(weight_bytes: int = 100, load_s: float = 1.0) -> ModelCosts:
    """10 ms a step, 1 ms a request, 0.01 ms a token of context; prefill 20 ms and 0.1 ms a token."""
    return ModelCosts(weight_bytes, 1, load_s, 0.02, 1e-4, 0.01, 1e-3, 1e-5)


class Checked:
    """The slack policy; at every decision the books of the device must balance, and no turn may be cut short."""

    def __init__(self, min_turn_s: float) -> None:
        self._slack = SlackTurns(min_turn_s)
        self._min_turn_s = min_turn_s
        self.decided: list[tuple[float, Turn | None]] = []

    @property
    def decisions(self) -> int:
        return len(self.decided)

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        weights = sum(view.costs[model].weight_bytes for model in view.resident | view.loading)
        kv = sum(view.kv_bytes.values())
        assert view.free_bytes >= 0, "more memory is used than there is"
        assert weights + kv + view.free_bytes == view.device_memory_bytes, "something holds memory off the books"
        turn = self._slack.next_turn(view, now_s)
        self.decided.append((now_s, turn))
        goes_on = view.running in view.demands and view.running in view.resident
        if turn and goes_on and turn.model != view.running:
            assert now_s - view.turn_started_s >= self._min_turn_s - 1e-9, "a turn was cut short"
        return turn


class World:
    """One worker."""

    def __init__(
        self,
        known: dict[str, ModelCosts],
        memory_bytes: int,
        *,
        max_steps: int = 1 << 20,
        min_turn_s: float = 0.4,
        host_bytes: int = 0,
    ) -> None:
        self.agenda = Agenda()
        self.policy = Checked(min_turn_s)
        self.ended: list[SimRequest] = []
        host = Host(HostSettings(kv_bytes=host_bytes), {name: one.weight_bytes for name, one in known.items()})
        self.device = Device(memory_bytes, known, BANDWIDTH_BYTES_PER_S, host)
        self.worker = Worker("w", self.device, known, self.policy, self.agenda, self.ended.append, max_steps=max_steps)

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
