"""What the protocol calls models: names that can be asked for, of one version each, and the tensors that they take."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hekaton.errors import HekatonError, ModelNotFound, ModelNotReady, ModelTooLarge, NoWorker
from hekaton.facts import CatalogEntry
from hekaton.oip import open_inference_pb2 as pb
from hekaton.store.catalog import Catalog
from hekaton_router.admission import Device, check_pool, ready_spec
from hekaton_router.models import permitted
from hekaton_router.oip.tensors import INPUTS, OUTPUTS, Kind

VERSION = "1"
PLATFORM = "hekaton"
NOT_NOW: tuple[type[HekatonError], ...] = (ModelNotFound, ModelNotReady, ModelTooLarge, NoWorker)


@dataclass(frozen=True, slots=True)
class Models:
    catalog: Catalog
    devices: Callable[[], Iterable[Device]]

    async def ready(self, request: pb.ModelReadyRequest) -> bool:
        """Whether a request could be served. Raises PermissionDenied, StoreUnavailable."""
        try:
            entry = await self._find(request.name, request.version)
            check_pool(entry.name, ready_spec(entry), self.devices())
        except NOT_NOW:
            return False
        return True

    async def metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        await self._find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[_tensor(name, kind) for name, kind in INPUTS.items()],
            outputs=[_tensor(name, kind) for name, kind in OUTPUTS.items()],
        )

    async def _find(self, name: str, version: str) -> CatalogEntry:
        entry = await permitted(self.catalog, name)
        check_version(name, version)
        return entry


def check_version(name: str, version: str) -> None:
    """Raises ModelNotFound."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"model {name[:128]} has no version {version[:32]!r}: it has version {VERSION} only")


def _tensor(name: str, kind: Kind) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=kind.datatype, shape=[-1 if kind.many else 1])
