"""Pictures, as SVG that is the same every time. Needs matplotlib: install hekaton[figures]."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hekaton.errors import InvalidArgument

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise InvalidArgument("pictures need matplotlib: pip install 'hekaton[figures]'") from error

Curve = Sequence[tuple[float, float]]


def bars(names: Sequence[str], groups: Mapping[str, Sequence[int | None]], label: str, path: Path) -> None:
    """One bar a name in each group, with its number; one that is None has no bar."""
    with _style():
        figure = Figure((1.2 + 1.1 * len(names), 3.2), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(groups)
        for place, (group, values) in enumerate(groups.items()):
            at = [index + (place - (len(groups) - 1) / 2) * width for index in range(len(names))]
            drawn = axes.bar(at, [value or 0 for value in values], width, label=group)
            axes.bar_label(drawn, ["none is enough" if value is None else str(value) for value in values], fontsize=7)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(label)
        if len(groups) > 1:
            axes.legend(frameon=False)
        _save(figure, path)


def panels(curves: Mapping[str, Mapping[str, Curve]], xlabel: str, ylabel: str, line_at: float, path: Path) -> None:
    """A panel for each title, side by side, with a curve for each name and a line at one height."""
    with _style():
        figure = Figure((3.2 * len(curves), 3.0), layout="constrained")
        row: Sequence[Axes] = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, (title, named) in zip(row, curves.items(), strict=True):
            for name, points in named.items():
                axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
            axes.axhline(line_at, color="grey", linewidth=0.8, linestyle="--")
            axes.set(title=title, xlabel=xlabel, ylim=(0, 1.03))
        row[0].set_ylabel(ylabel)
        row[0].legend(frameon=False, fontsize=7)
        _save(figure, path)


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "hekaton",
            "svg.fonttype": "none",
            "font.size": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        yield


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
