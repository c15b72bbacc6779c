"""Who may import whom. The rules are those of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = {"hekaton_router", "hekaton_scheduler", "hekaton_worker", "hekaton_memory"}
TORCH = {"torch", "transformers", "safetensors", "gguf"}
IMPURE = {"asyncio", "time", "random", "grpc", "redis", "torch", "threading", "socket", "os"}
FILES = sorted([*ROOT.glob("src/hekaton/**/*.py"), *ROOT.glob("services/**/*.py")])


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, by full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_place_allows(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    own = place[2] if place[0] == "services" else ""
    assert not (roots(path) & SERVICES) - {own}, "services import the library and never each other"
    if place[:3] == ("src", "hekaton", "policy"):
        assert not roots(path) & IMPURE, "policies are pure"
        inside = {name for name in imported(path) if name.startswith("hekaton")}
        assert all(name.startswith(("hekaton.policy", "hekaton.facts", "hekaton.errors")) for name in inside)
    if place[:3] == ("src", "hekaton", "client"):
        # Its messages are those of other clients too, and a process can know one definition of them only.
        assert not any(name.startswith("hekaton.oip") for name in imported(path))
    if place[:3] != ("src", "hekaton", "engine"):
        assert not roots(path) & TORCH, "only engine/ imports torch and what needs it"


def test_the_walk_sees_files() -> None:
    assert len(FILES) > 20
