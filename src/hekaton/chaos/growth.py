"""Whether what a pool holds has grown: the last third of what was seen after the warm-up against the first third."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Seen = Mapping[str, float]
"""By what was measured, at one moment of rest."""


@dataclass(frozen=True, slots=True)
class Growth:
    first: float
    last: float

    @property
    def ratio(self) -> float:
        return self.last / self.first - 1 if self.first else float(self.last > 0)


def growths(seen: Sequence[Seen]) -> dict[str, Growth]:
    """Of everything that was measured each time, by name. Nothing if there are fewer than two measurements."""
    if len(seen) < 2:
        return {}
    third = max(len(seen) // 3, 1)
    names = set(seen[0]).intersection(*seen)
    return {
        name: Growth(median(one[name] for one in seen[:third]), median(one[name] for one in seen[-third:]))
        for name in sorted(names)
    }
