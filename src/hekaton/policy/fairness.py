"""Fairness between tenants: who has had more than his share of the accelerators of late.

Weighted max-min: everybody may have what he asks for up to his share, and what some leave the others divide by their
weights. Whoever has had more than that yields (`hekaton.policy.urgency`) until the window has forgotten it, so nobody
waits for ever: a tenant that is served nothing is soon below every share.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from hekaton.policy.demands import DemandTable

WINDOW_S = 10.0
"""What was used so long ago counts a third (1 / e) of what is used now."""
BUSY = 1 / 3
"""Of the pool. While less is used nobody has too much: there is enough for all."""
TOLERANCE = 0.1
"""So much more than a share is not noticed."""
FORGOTTEN_S = 1e-3
RESERVED = 8
"""One of so many places of a worker is not for whoever has taken all others: who comes next finds it free."""


class Party(Protocol):
    """A live request."""

    tenant: str

    @property
    def model(self) -> str: ...
    @property
    def yields(self) -> bool: ...
    def stand(self, *, yields: bool) -> None:
        """Whether others go before it from now on."""


class Usage:
    """Accelerator seconds by tenant, forgotten exponentially."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._used: dict[str, tuple[float, float]] = {}
        """What is left of them, and when that was so."""

    def charge(self, tenant: str, seconds: float, now_s: float) -> None:
        self._used[tenant] = (self._left_s(tenant, now_s) + seconds, now_s)

    def rates(self, now_s: float) -> dict[str, float]:
        """How many accelerators each tenant has had on average, over the window."""
        left = {tenant: self._left_s(tenant, now_s) for tenant in self._used}
        self._used = {tenant: self._used[tenant] for tenant, seconds in left.items() if seconds > FORGOTTEN_S}
        return {tenant: left[tenant] / self._window_s for tenant in self._used}

    def _left_s(self, tenant: str, now_s: float) -> float:
        seconds, then_s = self._used.get(tenant, (0.0, now_s))
        return seconds * math.exp((then_s - now_s) / self._window_s)


def over_share(rates: Mapping[str, float], weights: Mapping[str, float], workers: int) -> frozenset[str]:
    """The tenants that use more than their shares of what is used. A tenant without a weight has 1."""
    left = (1 - TOLERANCE) * max(sum(rates.values()), BUSY * workers)
    ascending = sorted(rates, key=lambda tenant: rates[tenant] / weights.get(tenant, 1.0))
    for place, tenant in enumerate(ascending):
        weight = weights.get(tenant, 1.0)
        if rates[tenant] > left * weight / sum(weights.get(other, 1.0) for other in ascending[place:]):
            return frozenset(ascending[place:])
        left -= rates[tenant]
    return frozenset()


def has_place(tenant: str, held: Mapping[str, int], total: int, yielding: frozenset[str], most: int) -> bool:
    """Whether a worker takes one more request of a tenant's.

    It holds `total` and may hold `most`; `held` counts them by tenant. Who has no name has nobody to leave places to.
    """
    if not tenant or total >= most:
        return total < most
    together = yielding if tenant in yielding else (tenant,)
    return sum(held.get(one, 0) for one in together) < most - most // RESERVED


def charges(exposed_s: float, step_s: float, fed_tokens: Iterable[tuple[str, int]]) -> dict[str, float]:
    """What a step costs the tenants whose tokens it was fed, in proportion: itself, and waiting for its weights.

    The share of requests without a tenant is nobody's.
    """
    fed: dict[str, int] = {}
    for tenant, tokens in fed_tokens:
        fed[tenant] = fed.get(tenant, 0) + tokens
    total = sum(fed.values())
    return {tenant: (exposed_s + step_s) * tokens / total for tenant, tokens in fed.items() if tenant}


def set_yielding(tenants: frozenset[str], live: Collection[Party], demands: DemandTable) -> bool:
    """The requests of these tenants yield, those of others do not. True if that changes who goes before whom."""
    changed = [one for one in live if one.yields != (one.tenant in tenants)]
    for request in changed:
        request.stand(yields=not request.yields)
        demands.touch(request.model)
    return 0 < len(changed) < len(live)
