"""What is written of the metrics is what there is."""

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fakes.records import record
from hekaton.config import SchedulerSettings
from hekaton.engine.messages import LoadEnded, Status
from hekaton.errors import Cancelled, InvalidArgument
from hekaton.facts import TurnRecord, Weights
from hekaton.metrics import OTHER, ModelNames, serving_metrics, tell_of_process
from hekaton.store.connect import connect
from hekaton.store.keys import Kind
from hekaton.store.tenants import Tenants
from hekaton.store.workers import Registry
from hekaton.v1 import scheduler_pb2
from hekaton.v1.common_pb2 import FINISH_REASON_STOP, RequestStats
from hekaton.v1.inference_pb2 import Finished
from hekaton_memory.cache import Cache
from hekaton_memory.exchange import Exchange
from hekaton_memory.metrics import metrics_of as memory_metrics
from hekaton_memory.parcels import Parcels
from hekaton_memory.segments import Segments
from hekaton_router.live import LiveRequest, LiveRequests
from hekaton_router.metrics import RouterMetrics
from hekaton_router.view import PoolView
from hekaton_scheduler.metrics import metrics_of as scheduler_metrics
from hekaton_scheduler.shares import MAX_NAMES, OTHERS, Shares
from hekaton_worker.metrics import WorkerMetrics
from hekaton_worker.status import StatusBoard

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}
"""Without our prefix."""


def names(registry: CollectorRegistry) -> set[str]:
    """As they are scraped."""
    suffixes = {"counter": "_total"}
    found = {family.name + suffixes.get(family.type, "") for family in registry.collect()}
    return {name.removeprefix("hekaton_") for name in found}


async def test_the_documentation_names_every_metric_and_no_other(tmp_path: Path) -> None:
    redis = connect("redis://127.0.0.1:1")
    view = PoolView(Registry(redis, Kind.WORKER), Registry(redis, Kind.MEMORY))
    documented = set()
    for line in DOCS.read_text().splitlines():
        if line.startswith("| `"):
            documented |= set(re.findall(r"`([a-z_0-9]+)`", line.split("|")[1]))
    registries = [
        RouterMetrics(LiveRequests(), view).registry,
        WorkerMetrics(StatusBoard("w")).registry,
        scheduler_metrics(scheduler_pb2.GetSchedulerStatusResponse),
    ]
    tell_of_process(process := CollectorRegistry())
    registries.append(process)
    segments = Segments(tmp_path)
    try:
        exchange = Exchange(Parcels(tmp_path / "kv", 1, 1.0))
        registries.append(memory_metrics(Cache(segments, 1), exchange))
    finally:
        segments.close()
    assert set().union(*(names(registry) for registry in registries)) - PROCESS == documented


def test_a_leader_tells_what_tenants_have_used_and_who_yields() -> None:
    status = scheduler_pb2.GetSchedulerStatusResponse(
        tenant_seconds={"loud": 3.5, "quiet": 0.5}, yielding_tenants=["loud", "beyond the limit"]
    )
    value = scheduler_metrics(lambda: status).get_sample_value
    assert value("hekaton_tenant_accelerator_seconds_total", {"tenant": "loud"}) == 3.5
    assert value("hekaton_tenant_accelerator_seconds_total", {"tenant": "quiet"}) == 0.5
    assert value("hekaton_tenant_yields", {"tenant": "loud"}) == 1
    assert value("hekaton_tenant_yields", {"tenant": "beyond the limit"}) is None


async def test_seconds_of_many_tenants_stay_bounded() -> None:
    shares = Shares(Tenants(connect("redis://127.0.0.1:1")), lambda: 1, lambda tenants: None)
    shares.charge({f"t{index}": 1.0 for index in range(2 * MAX_NAMES)})
    shares.charge({"t0": 1.0, f"t{2 * MAX_NAMES - 1}": 1.0})
    assert len(shares.total_s) == MAX_NAMES + 1
    assert (shares.total_s["t0"], shares.total_s[OTHERS]) == (2.0, MAX_NAMES + 1)


async def test_turns_and_loads_are_counted() -> None:
    board = StatusBoard("w")
    metrics = WorkerMetrics(board)
    metrics.turn(TurnRecord(0, "w", "m", 0.0, 1.0, 0.25, True, 10, 1, 1, ("a", "b"), Weights.DEMAND))
    metrics.turn(TurnRecord(1, "w", "m", 1.0, 1.0, 0.0, False, 0, 1, 1, ()))
    metrics.loaded(LoadEnded("m", 0.5, 10))
    board.update(Status("m", ("m",), ("n",), 5, 0, 1, 2, 1, 7))
    value = metrics.registry.get_sample_value
    assert value("hekaton_model_switches_total", {"model_name": "m", "reason": "demand"}) == 1
    assert value("hekaton_preemptions_total", {"model_name": "m"}) == 2
    assert value("hekaton_model_switch_seconds_sum", {"phase": "exposed"}) == 0.25
    assert value("hekaton_model_switch_seconds_sum", {"phase": "copy"}) == 0.5
    assert value("hekaton_copied_bytes_total", {"model_name": "m"}) == 10
    assert value("hekaton_model_state", {"model_name": "n", "state": "loading"}) == 1
    assert value("hekaton_worker_tokens_total") == 7


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_kept_request_is_counted_by_its_end_and_not_when_its_client_leaves(ends_well: bool) -> None:
    redis = connect("redis://127.0.0.1:1")
    metrics = RouterMetrics(LiveRequests(), PoolView(Registry(redis, Kind.WORKER), Registry(redis, Kind.MEMORY)))
    kept = replace(record(), resume_window_s=60.0)
    live = LiveRequest(kept)
    live.accepted = True
    with suppress(asyncio.CancelledError), metrics.measured(kept) as meter:
        meter.watch(live)
        meter.accepted()
        raise asyncio.CancelledError
    value = metrics.registry.get_sample_value
    cancelled = {"model_name": "m1", "reason": "CANCELLED"}
    assert value("hekaton_request_failure_total", cancelled) is None
    live.assign(1, "w")
    live.extend(1, 0, [5])
    if ends_well:
        live.finish(1, Finished(reason=FINISH_REASON_STOP, stats=RequestStats(completion_tokens=1)))
    else:
        live.stop(Cancelled("nobody came back"))
    ended = {"model_name": "m1", "finished_reason": "stop"}
    assert value("hekaton_request_success_total", ended) == (1 if ends_well else None)
    assert value("hekaton_request_failure_total", cancelled) == (None if ends_well else 1)
    assert value("hekaton_generation_tokens_total", {"model_name": "m1"}) == 1


def test_the_label_of_models_is_bounded() -> None:
    name = ModelNames(most=2)
    assert [name(model) for model in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "nowhere", "127.0.0.1:99999"])
async def test_a_bad_address_is_refused(address: str) -> None:
    settings = SchedulerSettings(redis_url="redis://unused", metrics_listen=address)
    with (
        pytest.raises(InvalidArgument, match=r"metrics_listen=|cannot listen"),
        serving_metrics(settings, CollectorRegistry()),
    ):
        pass
