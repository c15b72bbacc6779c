"""Protobuf at the edge: messages of hekaton.v1 to and from the facts of `hekaton.facts`."""

from collections.abc import Mapping
from dataclasses import asdict, fields

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from hekaton import facts
from hekaton.errors import HekatonError
from hekaton.policy.costs import DeviceProfile
from hekaton.policy.types import ModelCosts, Role
from hekaton.v1 import common_pb2, memory_pb2, models_pb2, pool_pb2

log = structlog.get_logger(__name__)
FINISH_TO_PB = {
    facts.FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    facts.FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    facts.FinishReason.TOOL_CALLS: common_pb2.FINISH_REASON_TOOL_CALLS,
}
_FINISH_FROM_PB = {value: key for key, value in FINISH_TO_PB.items()}
STATE_TO_PB = {
    facts.ModelState.PREPARING: models_pb2.MODEL_STATE_PREPARING,
    facts.ModelState.READY: models_pb2.MODEL_STATE_READY,
    facts.ModelState.FAILED: models_pb2.MODEL_STATE_FAILED,
}
STATE_FROM_PB = {value: key for key, value in STATE_TO_PB.items()}

ROLE_TO_PB = {
    Role.ANY: pool_pb2.WORKER_ROLE_UNSPECIFIED,
    Role.PREFILL: pool_pb2.WORKER_ROLE_PREFILL,
    Role.DECODE: pool_pb2.WORKER_ROLE_DECODE,
}
ROLE_FROM_PB = {value: key for key, value in ROLE_TO_PB.items()}


def finish_from_pb(value: common_pb2.FinishReason.ValueType) -> facts.FinishReason:
    """Raises HekatonError for a reason that is not known here."""
    if value not in _FINISH_FROM_PB:
        raise HekatonError(
            f"a generation ended for reason {value}, which is not known here: update this side of the call"
        )
    return _FINISH_FROM_PB[value]


def duration(seconds: float) -> Duration:
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def seconds(value: Duration) -> float:
    return value.ToNanoseconds() / 1e9


def slo_to_pb(slo: facts.Slo) -> common_pb2.Slo:
    return common_pb2.Slo(ttft=duration(slo.ttft_s), tbt=duration(slo.tbt_s))


SLO_CLASS_TO_PB = {
    facts.SloClass.INTERACTIVE: common_pb2.SLO_CLASS_INTERACTIVE,
    facts.SloClass.STANDARD: common_pb2.SLO_CLASS_STANDARD,
    facts.SloClass.BATCH: common_pb2.SLO_CLASS_BATCH,
}
SLO_CLASS_FROM_PB = {number: slo_class for slo_class, number in SLO_CLASS_TO_PB.items()}


def slo_from_pb(message: common_pb2.Slo, default: facts.Slo) -> facts.Slo:
    """The objective, its unset halves taken from `default`."""
    return facts.Slo(
        ttft_s=seconds(message.ttft) if message.HasField("ttft") else default.ttft_s,
        tbt_s=seconds(message.tbt) if message.HasField("tbt") else default.tbt_s,
    )


def spec_to_pb(spec: facts.ModelSpec) -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(
        digest=spec.digest,
        architecture=spec.architecture,
        dtype=spec.dtype,
        weight_bytes=spec.weight_bytes,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        max_context_tokens=spec.max_context_tokens,
        vocab_size=spec.vocab_size,
        eos_token_ids=spec.eos_token_ids,
    )


def spec_from_pb(message: common_pb2.ModelSpec) -> facts.ModelSpec:
    return facts.ModelSpec(
        digest=message.digest,
        architecture=message.architecture,
        dtype=message.dtype,
        weight_bytes=message.weight_bytes,
        kv_bytes_per_token=message.kv_bytes_per_token,
        max_context_tokens=message.max_context_tokens,
        vocab_size=message.vocab_size,
        eos_token_ids=tuple(message.eos_token_ids),
    )


def model_to_pb(entry: facts.CatalogEntry) -> models_pb2.Model:
    return models_pb2.Model(
        name=entry.name,
        source=entry.source,
        slo=slo_to_pb(entry.slo),
        state=STATE_TO_PB[entry.state],
        error=entry.error,
        spec=spec_to_pb(entry.spec) if entry.spec else None,
        created=Timestamp(seconds=entry.created),
        pinned=entry.pinned,
        tool_parser=entry.tool_parser,
    )


def statuses_from_registry(listed: Mapping[str, bytes]) -> dict[str, pool_pb2.WorkerStatus]:
    """Statuses by worker id; one that is no status of that worker is left out."""
    statuses = {}
    for worker_id, info in listed.items():
        try:
            status = pool_pb2.WorkerStatus.FromString(info)
        except DecodeError as error:
            log.error("a registered status cannot be decoded", worker_id=worker_id, why=str(error))
            continue
        if status.worker_id == worker_id and status.address:
            statuses[worker_id] = status
        else:
            log.error("a registered status is not its worker's", worker_id=worker_id)
    return statuses


def costs_to_pb(model: str, costs: ModelCosts) -> pool_pb2.ModelCosts:
    return pool_pb2.ModelCosts(model=model, **asdict(costs))


def costs_from_pb(message: pool_pb2.ModelCosts) -> ModelCosts:
    return ModelCosts(**{field.name: getattr(message, field.name) for field in fields(ModelCosts)})


def profile_to_pb(profile: DeviceProfile) -> models_pb2.DeviceProfile:
    return models_pb2.DeviceProfile(
        device=profile.device,
        device_memory_bytes=profile.device_memory_bytes,
        costs=costs_to_pb("", profile.costs),
    )


def profile_from_pb(message: models_pb2.DeviceProfile) -> DeviceProfile:
    return DeviceProfile(message.device, message.device_memory_bytes, costs_from_pb(message.costs))


def tensor_to_pb(entry: facts.TensorEntry) -> memory_pb2.TensorEntry:
    return memory_pb2.TensorEntry(
        name=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        offset=entry.offset,
        bytes=entry.nbytes,
        aliases=entry.aliases,
    )


def image_from_pb(lease: memory_pb2.WeightsLease) -> facts.Image:
    tensors = tuple(
        facts.TensorEntry(t.name, t.dtype, tuple(t.shape), t.offset, t.bytes, tuple(t.aliases)) for t in lease.tensors
    )
    return facts.Image(lease.segment_path, lease.segment_bytes, tensors, lease.config_json)


def stats_to_pb(stats: facts.RequestStats) -> common_pb2.RequestStats:
    return common_pb2.RequestStats(
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
        preemptions=stats.preemptions,
        epoch=stats.epoch,
        failures=stats.failures,
        worker_id=stats.worker_id,
    )


def stats_from_pb(message: common_pb2.RequestStats) -> facts.RequestStats:
    return facts.RequestStats(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        preemptions=message.preemptions,
        epoch=message.epoch,
        failures=message.failures,
        worker_id=message.worker_id,
    )


def logprobs_to_pb(logprobs: facts.Logprobs) -> common_pb2.TokenLogprobs:
    pairs = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    top = [common_pb2.TokenLogprob(token_id=token_id, logprob=value) for token_id, value in pairs]
    return common_pb2.TokenLogprobs(logprob=logprobs.logprob, top=top)


def logprobs_from_pb(message: common_pb2.TokenLogprobs) -> facts.Logprobs:
    top = message.top
    return facts.Logprobs(message.logprob, tuple(one.token_id for one in top), tuple(one.logprob for one in top))


def turn_to_pb(turn: facts.TurnRecord) -> common_pb2.TurnRecord:
    return common_pb2.TurnRecord(
        index=turn.index,
        worker_id=turn.worker_id,
        model=turn.model,
        start=duration(turn.start_s),
        duration=duration(turn.duration_s),
        exposed_switch=duration(turn.exposed_switch_s),
        switched=turn.switched,
        copied_bytes=turn.copied_bytes,
        steps=turn.steps,
        tokens=turn.tokens,
        preempted_request_ids=turn.preempted_request_ids,
    )


def turn_from_pb(message: common_pb2.TurnRecord) -> facts.TurnRecord:
    return facts.TurnRecord(
        index=message.index,
        worker_id=message.worker_id,
        model=message.model,
        start_s=seconds(message.start),
        duration_s=seconds(message.duration),
        exposed_switch_s=seconds(message.exposed_switch),
        switched=message.switched,
        copied_bytes=message.copied_bytes,
        steps=message.steps,
        tokens=message.tokens,
        preempted_request_ids=tuple(message.preempted_request_ids),
    )
