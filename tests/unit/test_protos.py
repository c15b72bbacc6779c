"""Every RPC of the protos has its implementation, and every message its users' conventions."""

from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from hekaton.oip import open_inference_pb2
from hekaton.v1 import common_pb2, inference_pb2, memory_pb2, models_pb2, pool_pb2, scheduler_pb2, worker_pb2
from hekaton_memory import service as memory
from hekaton_router.inference import InferenceServicer
from hekaton_router.models import ModelServicer
from hekaton_router.oip.service import OpenInferenceServicer
from hekaton_router.pool import PoolServicer
from hekaton_scheduler import service as scheduler
from hekaton_worker import service as worker

OWN: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (common_pb2, inference_pb2, memory_pb2, models_pb2, pool_pb2, scheduler_pb2, worker_pb2)
)
FILES = (*OWN, open_inference_pb2.DESCRIPTOR)
"""The last is a public protocol, whose names are not ours."""
PROTOS = Path(__file__).parents[2] / "protos"


def implementations() -> dict[str, type]:
    """Service name → the class that implements it, found among the services' own classes."""
    own: list[type] = [InferenceServicer, ModelServicer, PoolServicer, OpenInferenceServicer]
    for module in (memory, scheduler, worker):
        own += [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
    return {
        base.__name__.removesuffix("Servicer"): cls
        for cls in own
        for base in cls.__mro__[1:]
        if base.__name__.endswith("ServiceServicer")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_rpc_is_implemented(file: FileDescriptor) -> None:
    found = implementations()
    for name, service in file.services_by_name.items():
        for method in service.methods:
            assert method.name in vars(found[name]), f"{name}.{method.name} has no implementation"


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_every_rpc_has_messages_of_its_own(file: FileDescriptor) -> None:
    for service in file.services_by_name.values():
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_enum_begins_unspecified_and_prefixed(file: FileDescriptor) -> None:
    for enum in file.enum_types_by_name.values():
        prefix = "".join(f"_{char}" if char.isupper() else char.upper() for char in enum.name).lstrip("_")
        assert enum.values[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in enum.values)


def test_every_proto_file_is_checked_here() -> None:
    assert {str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")} == {file.name for file in FILES}
