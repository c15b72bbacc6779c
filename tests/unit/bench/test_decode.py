"""The bench of steps: that it runs, the library's continuous batching included, on a tiny model."""

from dataclasses import astuple
from pathlib import Path

import pytest
import transformers
from bench import decode

from fakes.checkpoints import write_checkpoint


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_every_ratio_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.set_verbosity_error()
    monkeypatch.setattr(decode, "BATCHES", (1, 2, 3))
    monkeypatch.setattr(decode, "REQUESTS", 4)
    monkeypatch.setattr(decode, "OUTPUTS", (2, 5))
    found = decode.measure(write_checkpoint(tmp_path / "checkpoint", "llama", 1), "float32", 1, tmp_path)
    assert all(figure > 0 for figure in astuple(found)[1:])
