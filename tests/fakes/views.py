"""What policies are shown, made of a few requests: models are single letters with the same costs."""

from collections.abc import Iterable, Mapping

from hekaton.policy.types import Demand, ModelCosts, RequestView, Role, WorkerView

MODELS = "abcdef"


def demands_of(requests: Iterable[RequestView], costs: ModelCosts) -> dict[str, Demand]:
    by_model: dict[str, list[RequestView]] = {}
    for one in requests:
        by_model.setdefault(one.model, []).append(one)
    return {model: Demand.of(model, members, costs) for model, members in by_model.items()}


def worker_view(
    requests: Iterable[RequestView],
    costs: ModelCosts,
    memory: int,
    *,
    resident: str = "",
    loading: str = "",
    ready: str = MODELS,
    running: str | None = None,
    started_s: float = 0.0,
    kv: Mapping[str, int] | None = None,
    free: int | None = None,
    role: Role = Role.ANY,
) -> WorkerView:
    """`memory` bytes, of which weights and KV take theirs, unless `free` says what is left."""
    held = costs.weight_bytes * (len(resident) + len(loading)) + sum((kv or {}).values())
    return WorkerView(
        running=running,
        turn_started_s=started_s,
        resident=frozenset(resident),
        loading=frozenset(loading),
        ready=frozenset(ready),
        demands=demands_of(requests, costs),
        costs=dict.fromkeys(MODELS, costs),
        device_memory_bytes=memory,
        free_bytes=memory - held if free is None else free,
        kv_bytes=kv or {},
        role=role,
    )
