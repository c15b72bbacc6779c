"""What is refused before anything loads it, and that the message names the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hekaton.engine.checkpoint import check
from hekaton.errors import InvalidCheckpoint

Header = dict[str, object]


def tensors_file(path: Path, header: Header | bytes, nbytes: int) -> None:
    """A safetensors file of this header and so many bytes of data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(nbytes))


def tensor(start: int, stop: int, shape: tuple[int, ...], dtype: str = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


GOOD: Header = {"__metadata__": {"format": "pt"}, "b": tensor(24, 32, (2,)), "a": tensor(0, 24, (2, 3))}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    tensors_file(tmp_path / "model.safetensors", GOOD, 32)
    return tmp_path


def test_a_sound_checkpoint_passes(checkpoint: Path) -> None:
    check(checkpoint)


def test_a_sharded_checkpoint_passes(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "1.safetensors")
    tensors_file(checkpoint / "2.safetensors", {"c": tensor(0, 2, (1,), "BF16")}, 2)
    write_index(checkpoint, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    check(checkpoint)


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


HEADERS: dict[str, tuple[Header | bytes, int]] = {
    "one byte too few": (GOOD, 31),
    "one byte too many": (GOOD, 33),
    "no data": (GOOD, 0),
    "a gap": ({"a": tensor(0, 8, (2,)), "b": tensor(12, 20, (2,))}, 20),
    "an overlap": ({"a": tensor(0, 8, (2,)), "b": tensor(4, 12, (2,))}, 12),
    "a start after zero": ({"a": tensor(4, 12, (2,))}, 12),
    "negative offsets": ({"a": tensor(0, -8, (2,))}, 8),
    "another shape": ({"a": tensor(0, 8, (3,))}, 8),
    "a negative shape": ({"a": tensor(0, 8, (-2, -1))}, 8),
    "an unknown type": ({"a": tensor(0, 8, (8,), "F8_E4M3")}, 8),
    "no type": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "no JSON": (b"not json", 0),
    "a list": (b"[]", 0),
    "too deep": (b"[" * 100_000, 0),
    "no UTF-8": (b'{"\xff\xfe": 1}', 0),
    "a shape of words": (b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}', 8),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_corrupt_or_truncated_file_is_refused(checkpoint: Path, what: str) -> None:
    tensors_file(checkpoint / "model.safetensors", *HEADERS[what])
    refused(checkpoint, "model.safetensors")


@pytest.mark.parametrize("raw", [b"", b"1234", (1 << 40).to_bytes(8, "little") + b"{}", (10).to_bytes(8, "little")])
def test_a_file_shorter_than_its_header_is_refused(checkpoint: Path, raw: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(raw)
    refused(checkpoint, "model.safetensors is truncated")


def test_an_unsupported_type_is_named(checkpoint: Path) -> None:
    tensors_file(checkpoint / "model.safetensors", {"weird": tensor(0, 8, (8,), "F8_E4M3")}, 8)
    refused(checkpoint, "model.safetensors: tensor weird has the unsupported type F8_E4M3")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "last.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    refused(checkpoint, f"pickled weights only ({name})")


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a": "model.safetensors", "b": "2.safetensors"}, "missing: 2.safetensors"),
        ({"a": "../model.safetensors"}, "index.json: files must lie beside it"),
        ({"a": ".."}, "index.json: files must lie beside it"),
        ({}, "index.json: there is no weight_map"),
        ([1], "index.json: there is no weight_map"),
        (None, "index.json: there is no weight_map"),
    ],
)
def test_a_bad_index_is_refused(checkpoint: Path, weight_map: object, named: str) -> None:
    write_index(checkpoint, weight_map)
    refused(checkpoint, named)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff\xff\xff", b"[" * 100_000])
def test_bad_json_is_refused(checkpoint: Path, name: str, raw: bytes) -> None:
    (checkpoint / name).write_bytes(raw)
    refused(checkpoint, name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is not a directory")
    refused(tmp_path, "config.json is missing")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "holds no model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "holds no model.safetensors")


def test_checking_needs_no_torch(checkpoint: Path) -> None:
    code = (
        "import sys, pathlib; from hekaton.engine.checkpoint import check;"
        "check(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, checkpoint], check=True, timeout=60)


def refused(directory: Path, named: str) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        check(directory)
    assert named in caught.value.message
    assert str(directory) in caught.value.message
