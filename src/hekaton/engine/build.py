"""The image builder, a process that ends: `python -m hekaton.engine.build SOURCE --out DIRECTORY`.

Loads a checkpoint through the library, so that its own conversions apply, and writes the parameters as one flat
image. Tells on stdout, a JSON object a line: {"progress": [done, total]} …, then {"prepared": digest} or
{"error": {"reason": …, "message": …}} with exit status 1.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from hekaton.engine import checkpoint
from hekaton.engine.image import Prepared, begun_digest, image_bytes, layout, name_of, write_prepared
from hekaton.engine.supported import ARCHITECTURES, check_config, check_kind, kv_size, probe
from hekaton.errors import HekatonError, InvalidCheckpoint, ResourceExhausted
from hekaton.facts import ModelSpec, TensorEntry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHUNK_BYTES = 16 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Progress = Callable[[int, int], None]


def build(source: str, dtype: str, out: Path, progress: Progress) -> Prepared:
    """Writes `<digest>.img` and `<digest>.json` into `out`. Raises InvalidCheckpoint, ResourceExhausted."""
    directory = _locate(source)
    checkpoint.check(directory)
    config = _config(directory)
    model = _load(directory, dtype)
    probe(model)
    tokenizer_json, chat_template, special_tokens = _tokenizer(directory)
    state = _unique(model)
    tensors = layout([(names[0], _name(t), tuple(t.shape), t.nbytes, names[1:]) for t, names in state])
    spec = _spec(config, model, image_bytes(tensors))
    prepared = Prepared(spec, tensors, _config_json(config), tokenizer_json, chat_template, special_tokens)
    return _write(prepared, [tensor for tensor, _ in state], out, progress)


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        return path
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])
        )
    except Exception as error:
        raise InvalidCheckpoint(f"{source} is no directory, and cannot be fetched from the hub: {error}") from error


def _config(directory: Path) -> Any:
    raw = checkpoint.read_json(directory / "config.json")
    check_kind(raw.get("model_type"))
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise InvalidCheckpoint(f"{directory / 'config.json'} is refused by transformers: {error}") from error
    check_config(config)
    return config


def _config_json(config: Any) -> str:
    """The configuration without the directory that it was read from: equal contents have equal names."""
    fields = config.to_dict()
    fields.pop("_name_or_path", None)
    return json.dumps(fields, sort_keys=True)


def _load(directory: Path, dtype: str) -> Any:
    if dtype and dtype not in DTYPES:
        raise InvalidCheckpoint(f"dtype {dtype} is not supported; these are: {', '.join(DTYPES)}")
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES[dtype] if dtype else "auto",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InvalidCheckpoint(f"{directory} cannot be loaded: {error}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if info.get(what):
            names = sorted(str(name) for name in info[what])
            raise InvalidCheckpoint(f"{directory}: {what.replace('_', ' ')}: {', '.join(names[:5])}")
    return model.eval()


def _unique(model: Any) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Every tensor once, with all its names, in execution order."""
    names: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    tensors: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        names.setdefault(key, []).append(name)
        tensors[key] = tensor.detach().contiguous()
    return [(tensors[key], tuple(aliases)) for key, aliases in names.items()]


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _spec(config: Any, model: Any, nbytes: int) -> ModelSpec:
    layers, heads, head_size = kv_size(config)
    ends = model.generation_config.eos_token_id
    ends = config.eos_token_id if ends is None else ends
    return ModelSpec(
        digest="",
        architecture=ARCHITECTURES[config.model_type],
        dtype=str(model.dtype).removeprefix("torch."),
        weight_bytes=nbytes,
        kv_bytes_per_token=2 * layers * heads * head_size * model.dtype.itemsize,
        max_context_tokens=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        eos_token_ids=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
    )


def _tokenizer(directory: Path) -> tuple[str, str, dict[str, str]]:
    """Tokenizer, chat template, special tokens; all empty if the checkpoint brings none."""
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return "", "", {}
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise InvalidCheckpoint(f"{directory}: its tokenizer cannot be loaded: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = tokenizer.chat_template
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return backend.to_str() if backend else "", _one_template(template), special


def _one_template(template: str | dict[str, str] | None) -> str:
    """Some checkpoints have a second template for conversations with tools."""
    if not isinstance(template, dict):
        return template or ""
    plain, with_tools = template.get("default", ""), template.get("tool_use", "")
    if not (plain and with_tools):
        return plain or with_tools
    # The plus signs keep the space at their ends. A last line end counts in neither.
    with_tools, plain = with_tools.removesuffix("\n"), plain.removesuffix("\n")
    return f"{{%+ if tools +%}}{with_tools}{{%+ else +%}}{plain}{{%+ endif %}}"


def _write(prepared: Prepared, tensors: list[Tensor], out: Path, progress: Progress) -> Prepared:
    temporary = out / f"building-{os.getpid()}.img.tmp"
    digest = begun_digest(prepared)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            # Takes all the space now: a tmpfs that fills up later ends the process without a word.
            os.posix_fallocate(file.fileno(), 0, max(prepared.spec.weight_bytes, 1))
            for entry, tensor in zip(prepared.tensors, tensors, strict=True):
                file.seek(entry.offset)
                _write_tensor(entry, tensor, file, digest.update, progress, prepared.spec.weight_bytes)
        name = name_of(digest)
        result = replace(prepared, spec=replace(prepared.spec, digest=name))
        write_prepared(out / f"{name}.json", result)
        temporary.rename(out / f"{name}.img")
        return result
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ResourceExhausted(
            f"no room for an image of {prepared.spec.weight_bytes} bytes: give the segment directory more"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensor(
    entry: TensorEntry, tensor: Tensor, file: Any, digest: Callable[[Any], None], progress: Progress, total: int
) -> None:
    raw = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, entry.nbytes, CHUNK_BYTES):
        chunk = raw[start : start + CHUNK_BYTES]
        digest(chunk)
        file.write(chunk)
        progress(entry.offset + start + len(chunk), total)


def _tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hekaton.engine.build", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--dtype", default="", help="float32, bfloat16 or float16; the checkpoint's own if empty")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        prepared = build(args.source, args.dtype, args.out, lambda done, total: _tell(progress=[done, total]))
    except HekatonError as error:
        _tell(error={"reason": error.reason, "message": error.message})
        sys.exit(1)
    _tell(prepared=prepared.spec.digest)


if __name__ == "__main__":
    main()
