"""The models that the engine computes exactly. All others are refused at registration, by name."""

from typing import Any

import torch
import transformers

from hekaton.engine import attention
from hekaton.engine.attention import Feed, Pages
from hekaton.engine.kv import BlockShape
from hekaton.errors import InvalidCheckpoint

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Model type → class, of all that is proven to be exact."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Others change with the longest prompt of a batch."""


def check_kind(kind: object) -> None:
    """Raises InvalidCheckpoint unless the model type is one of ARCHITECTURES."""
    if kind not in ARCHITECTURES:
        raise InvalidCheckpoint(f"architecture {kind} is not supported; these are: {', '.join(ARCHITECTURES)}")


def check_config(config: Any) -> None:
    """Raises InvalidCheckpoint if a model of a supported architecture asks for something that is not honoured."""
    kind = config.model_type
    if getattr(config, "quantization_config", None):
        raise InvalidCheckpoint(f"this {kind} is quantised, which is not supported: give the original weights")
    for rope in _rope_types(config):
        if rope not in ROPE_TYPES:
            raise InvalidCheckpoint(
                f"rotary embeddings of type {rope} are not supported; these are: {', '.join(ROPE_TYPES)}"
            )
    if getattr(config, "use_bidirectional_attention", None):
        raise InvalidCheckpoint(f"this {kind} has use_bidirectional_attention: only causal models are supported")
    # The library gives this one's window to the mask alone, which paged attention makes itself.
    if kind == "qwen2_moe" and "sliding_attention" in config.layer_types:
        raise InvalidCheckpoint("sliding windows (use_sliding_window) are not supported in qwen2_moe")


def _rope_types(config: Any) -> set[str]:
    """One for all layers, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type", "default")) for each in by_layer_type or [parameters]}


def kv_size(config: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head size; the same in every layer of what is supported."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


@torch.inference_mode()
def probe(model: transformers.PreTrainedModel) -> None:
    """Computes two tokens with paged attention, which refuses whatever it does not honour.

    Raises InvalidCheckpoint. The model attends so from now on.
    """
    shape = BlockShape(*kv_size(model.config), str(model.dtype).removeprefix("torch."), model.dtype.itemsize)
    pages = Pages(torch.zeros(shape.nbytes, dtype=torch.uint8), shape)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    row = torch.tensor([[0, 1]])
    try:
        model(input_ids=row, position_ids=row, use_cache=False, step_plan=attention.plan(pages, [Feed(0, 2, [0])]))
    except Exception as error:
        raise InvalidCheckpoint(f"this {model.config.model_type} cannot be computed: {error}") from error
