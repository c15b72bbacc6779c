"""A forward pass over KV in blocks, through module trees that many models share."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from hekaton.engine import attention
from hekaton.engine.attention import Feed
from hekaton.engine.interface import StepItem
from hekaton.engine.kv import BlockShape
from hekaton.engine.skeleton import Skeleton


class Forward:
    """Computes on one device. `buffer` is its memory, flat bytes."""

    def __init__(self, device: torch.device, buffer: Tensor) -> None:
        self._device = device
        self._buffer = buffer
        self._skeletons: dict[tuple[str, str], Skeleton] = {}
        self._pages: dict[BlockShape, attention.Pages] = {}

    def skeleton(self, config_json: str, dtype: str) -> Skeleton:
        """The module tree of a configuration, made once."""
        key = (config_json, dtype)
        if key not in self._skeletons:
            self._skeletons[key] = Skeleton(config_json, getattr(torch, dtype), self._device)
        return self._skeletons[key]

    def pages(self, shape: BlockShape) -> attention.Pages:
        """The device's memory as blocks of a shape."""
        if shape not in self._pages:
            # A step may be the first to ask, where all KV has come from elsewhere: no inference tensors.
            with torch.inference_mode(False):
                self._pages[shape] = attention.Pages(self._buffer, shape)
        return self._pages[shape]

    def logits(self, skeleton: Skeleton, shape: BlockShape, items: Sequence[StepItem], feeds: Sequence[Feed]) -> Tensor:
        """Of the last token of every item that samples, (items, vocabulary)."""
        ids = [token for item in items for token in item.token_ids]
        positions = [position for feed in feeds for position in range(feed.start, feed.start + feed.fed)]
        ends = accumulate(feed.fed for feed in feeds)
        wanted = [end - 1 for item, end in zip(items, ends, strict=True) if item.sampling is not None]
        output = skeleton.module(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=self._device),
            step_plan=attention.plan(self.pages(shape), feeds),
        )
        logits: Tensor = output.logits[0]
        return logits
