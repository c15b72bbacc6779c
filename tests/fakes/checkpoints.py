"""Small real checkpoints, made on the fly."""

from hekaton.engine.tiny import CONFIGS, VOCAB, byte_tokenizer, write_checkpoint

__all__ = ["CONFIGS", "VOCAB", "byte_tokenizer", "write_checkpoint"]
