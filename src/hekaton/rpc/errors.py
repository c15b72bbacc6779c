"""Errors across gRPC: `HekatonError` to a rich status and back."""

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hekaton import errors
from hekaton.errors import DOMAIN, HekatonError, RemoteError, StaleTerm

log = structlog.get_logger(__name__)
STATUS_KEY = "grpc-status-details-bin"
NEWEST_TERM = "newest_term"
MAX_MESSAGE_BYTES = 1500
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def cut(message: str) -> str:
    """What of a message fits into metadata, which carry it twice; clients refuse metadata of 8 KiB."""
    data = message.encode()
    return message if len(data) <= MAX_MESSAGE_BYTES else data[:MAX_MESSAGE_BYTES].decode(errors="ignore") + " …"


def to_trailers(error: HekatonError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries the error's google.rpc details."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if isinstance(error, StaleTerm):
        info.metadata[NEWEST_TERM] = str(error.newest)
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo] = [info]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return ((STATUS_KEY, status.SerializeToString()),)


def known_error(error: Exception, method: str) -> HekatonError:
    """What a caller of `method` is told; of an error that nobody foresaw the log has the details."""
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, HekatonError):
        return error
    log.error("unexpected error", method=method, exc_info=error)
    return HekatonError("internal error; the service's log has the details")


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether a service said this; a status without details comes from the connection."""
    return any(key == STATUS_KEY for key, _ in error.trailing_metadata() or ())


def from_rpc_error(error: grpc.aio.AioRpcError) -> HekatonError:
    """The error that the other side raised, as the same class where there is one."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s = None
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Is(info.DESCRIPTOR):
                    detail.Unpack(info)
                elif detail.Is(retry.DESCRIPTOR):
                    detail.Unpack(retry)
                    retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    known = from_status(error.code(), info.reason, error.details() or str(error.code()), retry_after_s)
    if isinstance(known, StaleTerm):
        known.newest = int(info.metadata.get(NEWEST_TERM, "0"))
    return known


def from_status(code: grpc.StatusCode, reason: str, message: str, retry_after_s: float | None = None) -> HekatonError:
    """The error class that has this code and reason; a bare status takes its code's own class."""
    for cls in _classes():
        if cls.code == code and cls.reason == (reason or code.name):
            return cls(message, retry_after_s=retry_after_s)
    return RemoteError(code, reason or code.name, message, retry_after_s=retry_after_s)


def from_reason(reason: str, message: str) -> HekatonError:
    """The error class of a reason that was stored without its code."""
    for cls in _classes():
        if cls.reason == reason:
            return cls(message)
    return RemoteError(grpc.StatusCode.INTERNAL, reason, message)


def _classes() -> list[type[HekatonError]]:
    return [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, HekatonError) and cls is not RemoteError
    ]
