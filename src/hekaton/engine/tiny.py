"""Small real checkpoints with seeded random weights, made on the fly.

Their initial scale is large, so that logits are far apart and ties are rare. `python -m hekaton.engine.tiny DIRECTORY
ARCHITECTURE…` writes one of each into a directory of its name.
"""

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 320
HIDDEN = 64
END = 256
"""The id of the end token, if a model has one: the first after those of all bytes."""
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GATED = {"intermediate_size": 96, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2}
SHARP = {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 1}
CONFIGS: dict[str, dict[str, object]] = {
    "llama": {**GATED, "tie_word_embeddings": True},
    "qwen2": {**GATED},
    "qwen3": {**GATED, "head_dim": 32},
    "mistral": {**GATED, "sliding_window": 24},
    "gpt2": {"n_inner": 96},
    "gpt_neox": {"intermediate_size": 96},
    "phi": {**GATED},
    "gemma": {**GATED, "num_key_value_heads": 1, "head_dim": 32},
    "mixtral": {**GATED, "num_local_experts": 4, "sliding_window": 40},
    "qwen3_moe": {**GATED, **EXPERTS, "mlp_only_layers": [0]},
    "qwen2_moe": {**GATED, **EXPERTS, "shared_expert_intermediate_size": 96},
    "gemma2": {**GATED, **SHARP, "initializer_range": 0.1, "attn_logit_softcapping": 2.0, "tie_word_embeddings": False},
    "gemma3_text": {
        **GATED,
        **SHARP,
        "initializer_range": 0.03,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {**GATED, "sliding_window": 24},
    "olmo2": {**GATED, "initializer_range": 0.05},
}


def write_checkpoint(directory: Path, architecture: str = "llama", seed: int = 1, **changes: object) -> Path:
    """Saves a checkpoint with a byte-level tokenizer and a chat template into `directory` and returns it."""
    fields = {**COMMON, **CONFIGS[architecture], **changes}
    config = transformers.AutoConfig.for_model(architecture, **fields)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    backend = byte_tokenizer()
    if fields["eos_token_id"] == END:
        backend.add_special_tokens(["<end>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    tokenizer.save_pretrained(directory)
    return directory


def byte_tokenizer() -> Tokenizer:
    """One token a byte, ids 0 to 255."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    directory, *architectures = sys.argv[1:]
    for seed, architecture in enumerate(architectures, 1):
        write_checkpoint(Path(directory) / architecture, architecture, seed)


if __name__ == "__main__":
    main()
