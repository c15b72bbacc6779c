"""What became of one request, as its client saw it."""

from dataclasses import dataclass, field
from itertools import pairwise

from hekaton.facts import Slo


@dataclass(slots=True)
class Sample:
    """One request. Times are seconds since it was meant to be sent, so that a client that is late shows."""

    model: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    """As asked for; one that ends without them owes the rest."""
    slo: Slo
    token_times_s: list[float] = field(default_factory=list)
    sent_late_s: float = 0.0
    end_s: float = 0.0
    status: str = ""
    """Empty if it finished; else the code of the error that ended it."""

    @property
    def finished(self) -> bool:
        return not self.status

    @property
    def owed(self) -> int:
        """Tokens that count: those that were made, or, of a request that failed, those that it asked for."""
        return len(self.token_times_s) if self.finished else max(self.output_tokens, len(self.token_times_s))

    @property
    def on_time(self) -> int:
        """Tokens there by TTFT + i · TBT; none of a request that failed."""
        if not self.finished:
            return 0
        ttft_s, tbt_s = self.slo.ttft_s, self.slo.tbt_s
        return sum(time_s <= ttft_s + index * tbt_s for index, time_s in enumerate(self.token_times_s))

    @property
    def gaps_s(self) -> list[float]:
        """Between one token and the next."""
        return [later - earlier for earlier, later in pairwise(self.token_times_s)]
