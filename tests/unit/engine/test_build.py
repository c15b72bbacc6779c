"""From a checkpoint to an image: what is in it, what names it, and what is refused without a trace."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes.checkpoints import write_checkpoint
from fakes.tinymodels import TinyModel, image_of
from hekaton.engine import reference
from hekaton.engine.build import build
from hekaton.engine.image import ALIGN_BYTES, Prepared, read_prepared
from hekaton.engine.supported import ARCHITECTURES
from hekaton.errors import InvalidCheckpoint, ResourceExhausted
from hekaton_router.chat import ChatTemplate

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


def make(checkpoint: Path, out: Path, dtype: str = "float32") -> Prepared:
    out.mkdir(exist_ok=True)
    return build(str(checkpoint), dtype, out, lambda done, total: None)


def edit_config(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(checkpoint: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    edit(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", "llama")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_holds_every_parameter_of_the_loaded_model(models: dict[str, TinyModel], architecture: str) -> None:
    """Of the loaded one: experts are apart in a checkpoint, and one tensor a layer in the module."""
    model = models[architecture]
    raw = Path(model.image.path).read_bytes()
    assert len(raw) == model.image.nbytes == model.prepared.spec.weight_bytes
    loaded = reference.load(str(model.checkpoint), "float32").state_dict()
    found: dict[str, torch.Tensor] = {}
    for entry in model.image.tensors:
        assert entry.offset % ALIGN_BYTES == 0
        flat = torch.frombuffer(bytearray(raw[entry.offset :][: entry.nbytes]), dtype=getattr(torch, entry.dtype))
        found |= dict.fromkeys((entry.name, *entry.aliases), flat.view(entry.shape))
    assert loaded.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in loaded.items())
    assert model.prepared.spec.architecture == ARCHITECTURES[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_begins_with_the_embedding_and_goes_on_layer_by_layer(
    models: dict[str, TinyModel], architecture: str
) -> None:
    names = [entry.name for entry in models[architecture].image.tensors]
    layers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
    assert layers == sorted(layers)
    assert set(layers) == {0, 1}
    assert re.search(r"embed|wte", names[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kv_bytes_are_those_of_the_librarys_own_cache(models: dict[str, TinyModel], architecture: str) -> None:
    model = reference.load(str(models[architecture].checkpoint), "float32")
    cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert models[architecture].prepared.spec.kv_bytes_per_token * 3 == held


def test_a_tied_tensor_is_stored_once_under_both_names(models: dict[str, TinyModel]) -> None:
    aliases = {entry.name: entry.aliases for entry in models["llama"].image.tensors if entry.aliases}
    assert aliases == {"model.embed_tokens.weight": ("lm_head.weight",)}
    assert not any(entry.aliases for entry in models["qwen2"].image.tensors)


def test_the_side_file_says_what_the_image_is(checkpoint: Path, tmp_path: Path) -> None:
    prepared = make(checkpoint, tmp_path / "out")
    digest = prepared.spec.digest
    assert read_prepared(tmp_path / "out" / f"{digest}.json") == prepared
    assert sorted(os.listdir(tmp_path / "out")) == [f"{digest}.img", f"{digest}.json"]
    assert "assistant:" in prepared.chat_template
    assert prepared.tokenizer_json


def test_files_are_for_their_owner_only(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "out")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o600}


def test_the_same_content_elsewhere_has_the_same_digest(checkpoint: Path, tmp_path: Path) -> None:
    twin = write_checkpoint(tmp_path / "elsewhere" / "twin", "llama")
    assert make(checkpoint, tmp_path / "a").spec.digest == make(twin, tmp_path / "b").spec.digest
    assert make(twin, tmp_path / "a").spec.digest == make(twin, tmp_path / "a").spec.digest


def test_other_content_has_another_digest(checkpoint: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", "llama", seed=2)
    edited = write_checkpoint(tmp_path / "edited", "llama")
    edit_config(edited, rms_norm_eps=1e-4)
    made = [make(checkpoint, tmp_path / "out", dtype) for dtype in ("float32", "bfloat16", "float16")]
    made += [make(one, tmp_path / "out") for one in (other, edited)]
    assert len({prepared.spec.digest for prepared in made}) == len(made)
    assert [prepared.spec.dtype for prepared in made] == ["float32", "bfloat16", "float16", "float32", "float32"]


def test_without_a_dtype_it_is_the_checkpoints_own(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama", dtype="bfloat16")
    edit_weights(checkpoint, lambda w: w.update({name: tensor.bfloat16() for name, tensor in w.items()}))
    assert make(checkpoint, tmp_path / "out", "").spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 32}, "checkpoint"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"vocab_size": 321}, "checkpoint"),
        ({"model_type": "bert"}, "architecture bert"),
        ({"model_type": None}, "architecture None"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "of type dynamic"),
        ({"num_attention_heads": "many"}, "config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    edit_config(checkpoint, **changes)
    refused(checkpoint, tmp_path / "out", named)


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "this gemma has use_bidirectional_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "this gemma3_text has use_bidirectional_attention"),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 24, "layer_types": None}, "in qwen2_moe"),
        ("phi3", {"rope_parameters": LONG_ROPE}, "of type longrope"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            "of type dynamic",
        ),
        ("gemma2", {"layer_types": ["sliding_attention", "chunked_attention"]}, "this gemma2 cannot be computed"),
        ("gpt_neox", {"model_type": "gpt_oss"}, "architecture gpt_oss is not supported; these are: llama, qwen2,"),
    ],
)
def test_what_attention_does_not_honour_is_refused_by_name(
    tmp_path: Path, architecture: str, changes: dict[str, object], named: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", architecture)
    edit_config(checkpoint, **changes)
    refused(checkpoint, tmp_path / "out", named)


def test_missing_tensors_are_named(checkpoint: Path, tmp_path: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.pop("model.norm.weight"))
    refused(checkpoint, tmp_path / "out", "model.norm.weight")


def test_an_unknown_dtype_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    refused(checkpoint, tmp_path / "out", "dtype int4", dtype="int4")


def test_a_broken_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{")
    refused(checkpoint, tmp_path / "out", "tokenizer")


def test_a_checkpoint_without_a_tokenizer_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    (checkpoint / "chat_template.jinja").unlink()
    prepared = make(checkpoint, tmp_path / "out")
    assert (prepared.tokenizer_json, prepared.chat_template, prepared.special_tokens) == ("", "", {})


def test_a_second_template_is_for_conversations_with_tools(checkpoint: Path, tmp_path: Path) -> None:
    more = checkpoint / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{% for tool in tools %}\n  {{ tool.name }}\n{% endfor %}")
    template = ChatTemplate(make(checkpoint, tmp_path / "out").chat_template, {})
    asked = [{"role": "user", "content": "Hi"}]
    assert template.render(asked, [{"name": "f"}]) == "  f\n"
    assert template.render(asked) == "user: Hi\nassistant: "


def refused(checkpoint: Path, out: Path, named: str, dtype: str = "float32") -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        make(checkpoint, out, dtype)
    assert named in caught.value.message
    assert os.listdir(out) == []


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_image_that_finds_no_room_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with file_size_limit(100_000), pytest.raises(ResourceExhausted, match="no room for an image of"):
        make(checkpoint, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_side_file_that_finds_no_room_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("x" * 1_000_000)
    with file_size_limit(900_000), pytest.raises(ResourceExhausted):
        make(checkpoint, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_the_process_tells_progress_and_the_digest_or_the_error(checkpoint: Path, tmp_path: Path) -> None:
    def run(source: Path) -> tuple[int, list[dict[str, object]]]:
        command = [sys.executable, "-m", "hekaton.engine.build", str(source), "--dtype", "float32", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    out = tmp_path / "out"
    out.mkdir()
    status, lines = run(checkpoint)
    model = image_of(checkpoint, tmp_path)
    assert status == 0
    assert lines[-1] == {"prepared": model.prepared.spec.digest}
    ends = [entry.offset + entry.nbytes for entry in model.image.tensors]
    assert lines[:-1] == [{"progress": [end, model.image.nbytes]} for end in ends]
    assert (out / f"{model.prepared.spec.digest}.img").read_bytes() == Path(model.image.path).read_bytes()

    (checkpoint / "model.safetensors").unlink()
    status, lines = run(checkpoint)
    assert status == 1
    assert lines == [{"error": {"reason": "INVALID_CHECKPOINT", "message": f"{checkpoint} holds no model.safetensors"}}]
