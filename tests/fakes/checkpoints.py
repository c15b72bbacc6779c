"""Small real checkpoints with seeded random weights, made on the fly.

Their initial scale is large, so that logits are far apart and ties are rare.
"""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 320
HIDDEN = 64
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
CONFIGS: dict[str, dict[str, object]] = {
    "llama": {**GATED, "tie_word_embeddings": True},
    "qwen2": {**GATED},
    "qwen3": {**GATED, "head_dim": 32},
    "mistral": {**GATED, "sliding_window": 24},
    "gpt2": {"n_inner": 96},
}


def write_checkpoint(directory: Path, architecture: str = "llama", seed: int = 1, **changes: object) -> Path:
    """Saves a checkpoint with a byte-level tokenizer and a chat template into `directory` and returns it."""
    fields = {**COMMON, **CONFIGS[architecture], **changes}
    config = transformers.AutoConfig.for_model(architecture, **fields)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
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
