"""How a request ended, as the store knows it."""

from hekaton.errors import Cancelled, DeadlineExceeded, HekatonError, ModelNotFound, WorkerLost
from hekaton.facts import FinishReason, RequestState
from hekaton.rpc import convert
from hekaton.rpc.errors import from_reason
from hekaton.store.records import RequestSummary, StoredRequest
from hekaton.v1.inference_pb2 import Finished
from hekaton_router.live import LiveRequest


def cancelled(request_id: str) -> Cancelled:
    return Cancelled(f"request {request_id} was cancelled")


def end_of(live: LiveRequest, stored: StoredRequest | None) -> Finished | HekatonError:
    """An end that the store knows. Takes the tokens that go with it."""
    if stored is None:
        return HekatonError(f"request {live.record.request_id} failed: its record cannot be read; send it again")
    match stored.summary.state:
        case RequestState.FINISHED:
            return _finished(live, stored)
        case RequestState.CANCELLED:
            return cancelled(live.record.request_id)
        case _:
            return _failure(stored.summary)


def _finished(live: LiveRequest, stored: StoredRequest) -> Finished | HekatonError:
    """An end that the worker wrote and could not tell."""
    summary, stats = stored.summary, stored.summary.stats
    if len(stored.produced) > len(live.token_ids) and live.stopped_at is None:
        live.complete(stored.produced)
    if stats is None or (stats.completion_tokens != len(live.token_ids) and live.stopped_at is None):
        return WorkerLost(f"request {live.record.request_id}: its last tokens were lost with the worker: send it again")
    reason = convert.FINISH_TO_PB[FinishReason(summary.reason)]
    return Finished(reason=reason, stats=convert.stats_to_pb(stats))


def _failure(summary: RequestSummary) -> HekatonError:
    """What the scheduler gave up, or a worker whose own words were lost."""
    request_id = summary.record.request_id
    messages = {
        WorkerLost.reason: f"request {request_id} lost {summary.failures} workers: send it again",
        DeadlineExceeded.reason: f"request {request_id} did not end within its deadline",
        ModelNotFound.reason: f"model {summary.record.model} was removed while request {request_id} waited",
    }
    return from_reason(summary.reason, messages.get(summary.reason, f"request {request_id} failed; see the logs"))
