"""What is known of a checkpoint before it is read."""

import json
import os
from pathlib import Path

import pytest

from hekaton.errors import InvalidArgument, InvalidCheckpoint
from hekaton_memory.checkpoint import examine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "1.safetensors").write_bytes(bytes(600))
    (tmp_path / "2.safetensors").write_bytes(bytes(400))
    (tmp_path / "not-in-the-index.safetensors").write_bytes(bytes(4000))
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    (tmp_path / "deeper").mkdir()
    return tmp_path


@pytest.mark.parametrize(("dtype", "nbytes"), [("", 1000), ("bfloat16", 1000), ("float16", 1000), ("float32", 2000)])
def test_the_size_of_an_image_is_estimated_from_its_files(source: Path, dtype: str, nbytes: int) -> None:
    assert examine(str(source), dtype).estimated_bytes == nbytes


@pytest.mark.parametrize("config", ["{}", '{"dtype": "int3"}', '{"dtype": ["float32"]}'])
def test_a_strange_dtype_in_the_config_is_left_to_the_builder(source: Path, config: str) -> None:
    (source / "config.json").write_text(config)
    assert examine(str(source), "float32").estimated_bytes == 1000


def test_a_checkpoint_is_the_same_until_a_file_changes(source: Path) -> None:
    before = examine(str(source), "")
    assert examine(str(source), "") == before
    os.utime(source / "config.json", ns=(1, 1))
    assert examine(str(source), "") != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_directory_without_its_files_is_refused(source: Path, name: str) -> None:
    (source / name).unlink()
    with pytest.raises(InvalidCheckpoint):
        examine(str(source), "")


def test_of_a_name_on_a_hub_nothing_is_known() -> None:
    assert examine("organisation/model", "").estimated_bytes == 0


@pytest.mark.parametrize(("source", "dtype"), [("", ""), ("--out", ""), ("model", "int3")])
def test_what_no_checkpoint_can_satisfy_is_refused(source: str, dtype: str) -> None:
    with pytest.raises(InvalidArgument):
        examine(source, dtype)
