"""Host memory that a CUDA device copies from at the speed of its bus: pages that stay where they are.

Whatever goes wrong here costs speed alone: the driver copies from other memory too, through pages of its own.
"""

from typing import Any

import structlog
import torch
from torch import Tensor

log = structlog.get_logger(__name__)
READ_ONLY = 8
"""cudaHostRegisterReadOnly: images are mapped so."""


class HostPages:
    """Nothing happens for any device but CUDA."""

    def __init__(self, device: torch.device) -> None:
        # torch does not type it.
        self._driver: Any = torch.cuda.cudart() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._registered: set[int] = set()

    def register(self, memory: Tensor) -> None:
        """Before the first copy from it, which takes a fraction of a second a gigabyte: on the copy thread."""
        address = memory.data_ptr()
        if self._driver is None or address in self._registered:
            return
        error = self._driver.cudaHostRegister(address, memory.nbytes, READ_ONLY)
        if int(error):
            log.warning("copies to the device are slower: host memory cannot be registered", error=int(error))
        else:
            self._registered.add(address)

    def release(self, memory: Tensor) -> None:
        """Before it is unmapped, and when nothing copies from it any more."""
        address = memory.data_ptr()
        if self._driver is not None and address in self._registered:
            self._registered.remove(address)
            self._driver.cudaHostUnregister(address)
