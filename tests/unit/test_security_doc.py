"""Every test that the threat model names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_threat_model_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.count("|") == 4][2:]
    there = set(
        re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")))
    )
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= there, row
