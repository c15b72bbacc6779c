"""Figures and the bounds that they must keep."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Check:
    """One figure. It holds from `least` to `most`."""

    what: str
    measured: float
    least: float = -math.inf
    most: float = math.inf
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.least <= self.measured <= self.most

    @property
    def missed_by(self) -> float:
        """How far it is from its bound; 0 if it holds."""
        return max(self.least - self.measured, self.measured - self.most, 0.0)

    @property
    def bound(self) -> str:
        ends = [f"≥ {self.least:.4g}"] * math.isfinite(self.least) + [f"≤ {self.most:.4g}"] * math.isfinite(self.most)
        return ", ".join(ends)

    def facts(self) -> dict[str, object]:
        """For JSON."""
        measured, missed_by = round(self.measured, 6), round(self.missed_by, 6)
        verdict = {"bound": self.bound, "measured": measured, "holds": self.holds, "missed_by": missed_by}
        return {"what": self.what, **verdict, "note": self.note}


def table(title: str, checks: Iterable[Check]) -> Table:
    rows = Table("what", "bound", "measured", "holds?", "", box=SIMPLE, pad_edge=False, title=title)
    for check in checks:
        verdict = "yes" if check.holds else f"[red]no, by {check.missed_by:.4f}[/red]"
        rows.add_row(check.what, check.bound, f"{check.measured:.4f}", verdict, check.note)
    return rows
