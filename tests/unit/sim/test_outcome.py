import numpy as np
import pytest

from hekaton.sim.outcome import finished, qos, refused
from hekaton.sim.request import SimRequest, Stretch


def ended(*stretches: Stretch, tokens: int) -> SimRequest:
    return SimRequest("r", "a", 0.0, 10, tokens, ttft_s=1.0, tbt_s=0.1, stretches=list(stretches))


def test_a_token_is_on_time_by_arrival_plus_ttft_plus_its_index_times_tbt() -> None:
    # Due at 1.0, 1.1, 1.2, 1.3; made at 0.9, 1.05, 1.21, 1.30.
    made = (Stretch(0.9 - 0.5, 0.5, 0.0, 1), Stretch(0.9, 0.15, 0.01, 2), Stretch(1.21, 0.09, 0.0, 1))
    outcome = finished(ended(*made, tokens=4))
    assert outcome.on_time == 3
    assert outcome.ttft_s == pytest.approx(0.9)
    assert outcome.finished


def test_qos_is_one_if_every_token_is_on_time() -> None:
    assert qos(np.array([0.5, 0.6, 0.7]), ttft_s=1.0, tbt_s=0.1) == 1.0


def test_qos_counts_the_last_target_that_was_met_before_a_miss() -> None:
    # The second token misses 1.1 at 4.0; after that 4.05 is 0.05 past the miss. (1.0 + 0.05) / 4.05.
    assert qos(np.array([0.5, 4.0, 4.05]), ttft_s=1.0, tbt_s=0.1) == pytest.approx(1.05 / 4.05)


def test_a_refused_request_has_only_late_tokens() -> None:
    outcome = refused(ended(tokens=7))
    assert (outcome.tokens, outcome.on_time, outcome.qos, outcome.finished) == (7, 0, 0.0, False)
