"""The bench of switching: its drift, as far as it is quick."""

from bench.switch_drift import drift


def test_random_switches_leave_nothing_behind() -> None:
    found = drift(60, 4)
    assert abs(found.drift) <= 0.01
    assert found.left_descriptors == 0
    assert found.same_tokens
