import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.sim.request import Stretch

STRETCHES = st.builds(
    Stretch,
    st.floats(0, 1e4),
    st.floats(1e-3, 1.0),
    st.one_of(st.just(0.0), st.floats(1e-9, 1e-4)),
    st.integers(1, 500),
)


def test_the_times_of_a_stretch_grow_with_its_context() -> None:
    stretch = Stretch(start_s=1.0, step_s=0.1, growth_s=0.01, steps=3)
    assert stretch.token_times_s().tolist() == pytest.approx([1.1, 1.21, 1.33])
    assert stretch.end_s == pytest.approx(1.33)


@given(STRETCHES, st.floats(0, 1))
def test_a_cut_falls_on_the_first_boundary_at_or_after_the_time(stretch: Stretch, share: float) -> None:
    time_s = stretch.start_s + share * (stretch.end_s - stretch.start_s)
    steps = stretch.steps_by(time_s)
    assert 1 <= steps <= stretch.steps
    assert stretch.after_s(steps) >= time_s - 1e-9
    assert steps == 1 or stretch.after_s(steps - 1) < time_s + 1e-9
