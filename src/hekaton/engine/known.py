"""A model that a transformers engine knows, and what of it is where."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hekaton.engine.copier import CopyJob
from hekaton.engine.device import Extent
from hekaton.engine.grammar import Vocabulary
from hekaton.engine.image import read_prepared
from hekaton.engine.kv import BlockShape
from hekaton.engine.meter import Meter
from hekaton.engine.skeleton import Skeleton
from hekaton.engine.supported import kv_size
from hekaton.engine.weights import Gate, check_image, gates, mapped, parameters, shift
from hekaton.errors import EngineFailed
from hekaton.facts import Image, ModelSpec


@dataclass(eq=False, slots=True)
class KnownModel:
    name: str
    spec: ModelSpec
    meter: Meter
    image: Image | None = None
    source: Tensor | None = None
    """The mapped image, flat bytes."""
    skeleton: Skeleton | None = None
    shape: BlockShape | None = None
    extent: Extent | None = None
    job: CopyJob | None = None
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """Made once: it takes milliseconds. Views of the device from `views_at` on."""
    views_at: int = 0
    gates: list[Gate] = field(default_factory=list)

    def provide(self, image: Image, skeleton: Skeleton, buffer: Tensor) -> None:
        """Its weights are in that file. Raises InvalidCheckpoint if the image is not one of this model."""
        self.skeleton = skeleton
        self.shape = BlockShape(*kv_size(skeleton.config), self.spec.dtype, getattr(torch, self.spec.dtype).itemsize)
        check_image(skeleton, self.spec, image)
        self.source = mapped(Path(image.path), image.nbytes)
        if not self.parameters:
            self.parameters = parameters(image, buffer)
            self.gates = gates(skeleton, image)

    def look_at(self, start: int) -> None:
        """Lets its parameters look at the extent that begins there."""
        if start != self.views_at:
            shift(self.parameters.values(), start - self.views_at)
            self.views_at = start

    def vocabulary(self) -> Vocabulary:
        """From what lies beside its image. Raises EngineFailed."""
        if self.image is None:
            raise EngineFailed(f"model {self.name} has no image")
        try:
            tokenizer_json = read_prepared(Path(self.image.path).with_suffix(".json")).tokenizer_json
            return Vocabulary(tokenizer_json, self.spec.vocab_size, self.spec.eos_token_ids)
        except (OSError, ValueError) as error:
            raise EngineFailed(f"the tokenizer of model {self.name} cannot be used: {error}") from error
