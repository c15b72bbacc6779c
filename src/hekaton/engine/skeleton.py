"""Module trees without weights: built once per configuration, bound to whichever model runs.

A switch between models of one configuration sets the parameters of one tree to other views of the device buffer;
nothing is constructed or copied.
"""

import json
from collections.abc import Iterator, Mapping

import torch
import transformers
from torch import nn

from hekaton.engine import attention
from hekaton.engine.head import Head


class Skeleton:
    """A model's modules on `meta`, with its parameters as slots."""

    def __init__(self, config_json: str, dtype: torch.dtype, device: torch.device) -> None:
        attention.register()
        fields = json.loads(config_json)
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.NAME, trust_remote_code=False
            )
            head = model.get_output_embeddings()
            if type(head) is nn.Linear:
                model.set_output_embeddings(Head(head))
        self.config = config
        self.module: nn.Module = model.eval().requires_grad_(False)
        self.bound = ""
        """The model whose weights the parameters are views of."""
        self._slots = _slots(self.module)
        _rebuild_buffers(model, device)

    def bind(self, model: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Makes this tree the given model. `parameters` has each under every of its names."""
        for name, (owner, attribute) in self._slots.items():
            # Not by setattr, whose checks would take ten times as long.
            place = owner._parameters if attribute in owner._parameters else owner._buffers
            place[attribute] = parameters[name]
        self.bound = model

    def parts(self) -> list[tuple[nn.Module, frozenset[str]]]:
        """The modules that compute one after the other, with the slots in each; first the whole, with all others."""
        found: list[tuple[nn.Module, frozenset[str]]] = []
        for path, module in _parts(self.module, ""):
            own = frozenset(name for name in self._slots if name.startswith(f"{path}."))
            if own:
                found.append((module, own))
        others = frozenset(self._slots).difference(*(names for _, names in found))
        return [(self.module, others), *found]

    def missing(self, names: set[str]) -> set[str]:
        """Slots that an image with these names would leave empty."""
        return set(self._slots) - names

    def shape_of(self, name: str) -> tuple[int, ...]:
        owner, attribute = self._slots[name]
        return tuple(getattr(owner, attribute).shape)


def _slots(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Name → owner and attribute, of everything that a checkpoint holds; tied ones under each name."""
    slots = {}
    for name in module.state_dict():
        path, _, attribute = name.rpartition(".")
        slots[name] = (module.get_submodule(path), attribute)
    return slots


def _parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Decoder layers, and whatever stands beside their list: embedding, last norm, head."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{inner}.{index}", layer) for index, layer in enumerate(child))
        elif any(isinstance(one, nn.ModuleList) for one in child.modules()):
            yield from _parts(child, inner)
        else:
            yield inner, child


def _rebuild_buffers(model: transformers.PreTrainedModel, device: torch.device) -> None:
    """Gives the buffers that no checkpoint holds (rotary frequencies, an embedding's scale) their values."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = torch.empty_like(module.get_buffer(name), device=device)
        if module._non_persistent_buffers_set:
            # What `from_pretrained` does with them. Parameters are on `meta` still, where this changes nothing.
            model._init_weights(module)
