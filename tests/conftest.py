"""Hypothesis: the same examples in every run, so that a green change stays green.

`HYPOTHESIS_PROFILE=fuzz make test` looks for new ones.
"""

import os

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow]
"""It is the machine that is slow."""
settings.register_profile("steady", deadline=None, suppress_health_check=SLOW, derandomize=True, database=None)
settings.register_profile("fuzz", deadline=None, suppress_health_check=SLOW, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
