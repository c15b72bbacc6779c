"""How tensors lie in an image, and the side file that says so."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.engine.image import ALIGN_BYTES, Prepared, image_bytes, layout, read_prepared, write_prepared
from hekaton.facts import ModelSpec

SPEC = ModelSpec("digest", "LlamaForCausalLM", "float32", 512, 8, 100, 256, (2,))


@given(sizes=st.lists(st.integers(0, 5000), max_size=20))
def test_tensors_are_aligned_in_order_and_do_not_overlap(sizes: list[int]) -> None:
    entries = layout([(f"t{index}", "uint8", (size,), size, ()) for index, size in enumerate(sizes)])
    assert [(entry.name, entry.nbytes) for entry in entries] == [(f"t{i}", size) for i, size in enumerate(sizes)]
    end = 0
    for entry in entries:
        assert entry.offset % ALIGN_BYTES == 0
        assert end <= entry.offset < end + ALIGN_BYTES
        end = entry.offset + entry.nbytes
    assert end <= image_bytes(entries) < end + ALIGN_BYTES
    assert image_bytes(entries) % ALIGN_BYTES == 0


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tensors = layout([("a", "float32", (2, 3), 24, ("b",)), ("c", "float32", (), 4, ())])
    prepared = Prepared(SPEC, tensors, "{}", "", "{{ x }}", {"eos_token": "</s>"})
    write_prepared(tmp_path / "digest.json", prepared)
    assert read_prepared(tmp_path / "digest.json") == prepared
    assert [path.name for path in tmp_path.iterdir()] == ["digest.json"]


@pytest.mark.parametrize("raw", [b"", b"{", b"{}", b'{"spec": 1}'])
def test_a_side_file_that_is_not_ours_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(msgspec.DecodeError):
        read_prepared(tmp_path / "x.json")
