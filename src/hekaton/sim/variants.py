"""Policies with their settings, as comparisons put them side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hekaton.policy.registry import POLICIES
from hekaton.sim.host import HostSettings
from hekaton.sim.run import Settings

CEILING = "ceiling"
NO_LIMIT_BYTES = 10**16
NO_LIMIT_BYTES_PER_S = 1e19
AEGAEON_Q_MAX_S = (2.0, 1.0, 4.0, 0.5)
AEGAEON_PREFILL_OF_16 = (6.0, 5.0, 4.0, 3.0)
CEILING_MIN_TURNS_S = (0.4, 0.05, 0.1, 0.2, 0.8)


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with options."""

    policy: str
    options: Mapping[str, float] = field(default_factory=dict)
    is_free: bool = False
    """Switching costs nothing: memory and bandwidth have no limits."""

    @property
    def least_workers(self) -> int:
        """`aegaeon` needs one for each role."""
        return 2 if self.policy == "aegaeon" else 1

    def apply(self, settings: Settings) -> Settings:
        chosen = replace(settings, policy=self.policy, policy_options=dict(self.options))
        if not self.is_free:
            return chosen
        return replace(
            chosen,
            device_memory_bytes=NO_LIMIT_BYTES,
            bandwidth_bytes_per_s=NO_LIMIT_BYTES_PER_S,
            host=HostSettings(kv_bytes=NO_LIMIT_BYTES),
        )


def contenders() -> dict[str, list[Variant]]:
    """Every policy by name; `aegaeon` over a grid of its settings, the likeliest first."""
    grid = [
        Variant("aegaeon", {"q_max_s": q_max_s, "prefill_workers": prefill})
        for q_max_s in AEGAEON_Q_MAX_S
        for prefill in AEGAEON_PREFILL_OF_16
    ]
    return {name: grid if name == "aegaeon" else [Variant(name)] for name in POLICIES}


def ceiling() -> list[Variant]:
    """What free switching allows: `slack` over several minimum turns, and every other policy."""
    ours = [Variant("slack", {"min_turn_s": turn_s}, is_free=True) for turn_s in CEILING_MIN_TURNS_S]
    others = [Variant(name, is_free=True) for name in POLICIES if name != "slack"]
    return ours + others
