from pathlib import Path

import numpy as np
import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim.arrivals import Arrivals, Gamma, OnOff, Poisson, Trace, read_trace

ALL = [Poisson(), Gamma(4.0), OnOff(20.0, 60.0), Trace([0.0, 1.0, 1.5, 4.0])]


@pytest.mark.parametrize("arrivals", ALL, ids=["poisson", "gamma", "onoff", "trace"])
def test_arrivals_come_at_their_rate_in_order_and_in_time(arrivals: Arrivals) -> None:
    times = arrivals.times_s(2.0, 20_000.0, np.random.default_rng(3))
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 20_000
    assert len(times) == pytest.approx(40_000, rel=0.1)


@pytest.mark.parametrize("arrivals", ALL, ids=["poisson", "gamma", "onoff", "trace"])
def test_arrivals_depend_on_the_seed_only(arrivals: Arrivals) -> None:
    one, again, other = (arrivals.times_s(1.0, 500.0, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == again != other


def test_gamma_gaps_have_the_variation_that_was_asked_for() -> None:
    gaps = np.diff(Gamma(3.0).times_s(1.0, 20_000.0, np.random.default_rng(5)))
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.15)


def test_onoff_arrivals_come_in_spells() -> None:
    times = OnOff(on_s=10.0, off_s=90.0).times_s(1.0, 50_000.0, np.random.default_rng(5))
    gaps = np.diff(times)
    assert np.median(gaps) < 0.15, "ten times the mean rate within a spell"
    pauses = gaps[gaps > 5]
    assert pauses.mean() == pytest.approx(90, rel=0.15)


def test_onoff_without_pauses_is_poisson() -> None:
    gaps = np.diff(OnOff(on_s=10.0, off_s=0.0).times_s(1.0, 20_000.0, np.random.default_rng(5)))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("on_s", "off_s"), [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_spells_and_pauses_have_lengths(on_s: float, off_s: float) -> None:
    with pytest.raises(InvalidArgument, match="a spell lasts"):
        OnOff(on_s, off_s)


def test_a_workload_serves_as_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_seconds,model,input_tokens,output_tokens\n3.0,a,1,1\n0.5,b,1,1\n")
    assert read_trace(path) == Trace([0.5, 3.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("seconds\n1\n", "line 1"),
        ("arrival_seconds\n1\nsoon\n", "line 3"),
        ("arrival_seconds\n1\n-2\n", "line 3"),
        ("arrival_seconds\n1\n", "at least two"),
        ("arrival_seconds\n1\n1\n", "at least two"),
    ],
)
def test_a_malformed_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=message):
        read_trace(path)
