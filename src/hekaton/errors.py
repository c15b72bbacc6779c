"""The errors of hekaton. Each knows its gRPC status and a machine-readable reason.

One interceptor (`hekaton.rpc.errors`) turns them into rich statuses: ErrorInfo with `reason` and domain, RetryInfo
where `retry_after_s` is set. A client turns a status back with `hekaton.rpc.errors.from_rpc_error`.
"""

import grpc

DOMAIN = "hekaton"


class HekatonError(Exception):
    """Root of all errors that a caller may see. The message says what to do next."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"
    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidArgument(HekatonError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class InvalidCheckpoint(InvalidArgument):
    """A checkpoint that cannot be served: corrupt, truncated, pickled, or of an unknown architecture."""

    reason = "INVALID_CHECKPOINT"


class ModelNotFound(HekatonError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class RequestNotFound(HekatonError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "REQUEST_NOT_FOUND"


class AlreadyExists(HekatonError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class ModelTooLarge(HekatonError):
    """A model that no device of the pool can hold."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_TOO_LARGE"


class ModelNotReady(HekatonError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_NOT_READY"


class ResourceExhausted(HekatonError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    retry_after_s = 1.0


class QuotaExceeded(ResourceExhausted):
    """A tenant's own limit, not the pool's."""

    reason = "QUOTA_EXCEEDED"


class Unauthenticated(HekatonError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(HekatonError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unavailable(HekatonError):
    """The pool, or a part of it, cannot be reached now."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    retry_after_s = 1.0


class StoreUnavailable(Unavailable):
    reason = "STORE_UNAVAILABLE"


class NoWorker(Unavailable):
    reason = "NO_WORKER"


class WorkerLost(Unavailable):
    """Every attempt that the request was allowed lost its worker."""

    reason = "WORKER_LOST"


class DeadlineExceeded(HekatonError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(HekatonError):
    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class StaleTerm(HekatonError):
    """A command under a leadership or lease that has been superseded."""

    code = grpc.StatusCode.ABORTED
    reason = "STALE_TERM"

    def __init__(self, message: str, *, newest: int = 0, retry_after_s: float | None = None) -> None:
        """`newest` is the term that holds; 0 if it is not known."""
        super().__init__(message, retry_after_s=retry_after_s)
        self.newest = newest


class Diverged(HekatonError):
    """A later attempt produced other tokens than those already delivered: ended, never spliced."""

    code = grpc.StatusCode.ABORTED
    reason = "DIVERGED"


class ResumedElsewhere(HekatonError):
    """Another connection reads the request now."""

    code = grpc.StatusCode.ABORTED
    reason = "RESUMED_ELSEWHERE"


class NotResumable(HekatonError):
    """A request that does not go on without its client."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_RESUMABLE"


class KvLost(HekatonError):
    """KV that was to travel cannot be used: it is computed again."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "KV_LOST"


class EngineFailed(HekatonError):
    """The engine could not do what was asked of it; the request is at fault or the device is."""

    reason = "ENGINE_FAILED"


class PoisonRequest(HekatonError):
    """A request whose computation ends engines. It would end others: it is not tried again."""

    reason = "POISON_REQUEST"


class RemoteError(HekatonError):
    """A status from another process that has no class of its own here."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.code = code
        self.reason = reason
