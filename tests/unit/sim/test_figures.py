from pathlib import Path
from xml.etree import ElementTree

from hekaton.sim.figures import bars, panels

CURVES = {"left": {"a": [(1.0, 0.9), (2.0, 0.5)], "b": [(1.0, 0.4)]}, "right": {"a": [(1.0, 1.0)]}}


def texts(path: Path) -> set[str]:
    return {node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text") if node.text}


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        panels(CURVES, "models", "share", 0.9, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert texts(tmp_path / "one.svg") >= {"left", "right", "a", "b", "models", "share"}


def test_bars_are_labelled_and_what_is_missing_is_said(tmp_path: Path) -> None:
    bars(["slack", "other"], {"1 x SLO": [7, None], "0.5 x SLO": [9, 12]}, "GPUs", tmp_path / "b.svg")
    assert texts(tmp_path / "b.svg") >= {"slack", "other", "7", "9", "12", "none is enough", "GPUs", "0.5 x SLO"}
