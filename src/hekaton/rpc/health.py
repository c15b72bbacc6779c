"""Asking others for their health."""

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hekaton.errors import Unavailable

SERVING = health_pb2.HealthCheckResponse.SERVING


async def is_serving(channel: grpc.aio.Channel, service: str = "", *, timeout_s: float = 3.0) -> bool:
    """Whether the service says SERVING; False if it cannot be reached or does not know the name."""
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == SERVING)


async def until_serving(channel: grpc.aio.Channel) -> None:
    """Returns when the server says SERVING. Raises Unavailable if the connection ends before."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
    try:
        async for response in watch:
            if response.status == SERVING:
                return
    except grpc.aio.AioRpcError as error:
        raise Unavailable(f"the connection ended before the service was ready: {error.details()}") from error
    finally:
        watch.cancel()
    raise Unavailable("the service stopped before it was ready")
