"""Hypothesis: the same examples in every run, so that a green change stays green.

`HYPOTHESIS_PROFILE=fuzz make test` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.register_profile("fuzz", deadline=None, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
