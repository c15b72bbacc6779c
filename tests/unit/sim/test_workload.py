from pathlib import Path

import numpy as np
import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Arrivals, Gamma, Poisson, Trace
from hekaton.sim.catalog import names
from hekaton.sim.lengths import LogNormal, Sampled
from hekaton.sim.workload import Arrival

HEADER = "arrival_seconds,model,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    "arrivals", [Poisson(), Gamma(4.0), Trace([0.0, 1.0, 1.5, 4.0])], ids=["poisson", "gamma", "trace"]
)
def test_arrivals_come_at_their_rate_in_order_and_in_time(arrivals: Arrivals) -> None:
    times = arrivals.times_s(2.0, 5000.0, np.random.default_rng(3))
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 5000
    assert len(times) == pytest.approx(10_000, rel=0.1)


def test_gamma_gaps_have_the_variation_that_was_asked_for() -> None:
    gaps = np.diff(Gamma(3.0).times_s(1.0, 20_000.0, np.random.default_rng(5)))
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.15)


def test_a_workload_depends_on_its_seed_only_and_lengths_not_on_arrivals() -> None:
    one, again, other = (workload.generate(names(5), 1.0, 20.0, Poisson(), LogNormal(), seed) for seed in (7, 7, 8))
    assert one == again != other
    bursts = workload.generate(names(5), 1.0, 20.0, Gamma(2.0), LogNormal(), 7)
    shared = min(len(one), len(bursts), 20)
    drawn = [(arrival.input_tokens, arrival.output_tokens) for arrival in one[:shared]]
    assert Sampled(drawn).pairs == drawn
    assert all(arrival.input_tokens >= 1 and arrival.output_tokens >= 1 for arrival in bursts)


def test_a_file_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text(HEADER + "2.5,m01,3,4\n0.5,m00,1,2\n")
    assert workload.read(path) == [Arrival(0.5, "m00", 1, 2), Arrival(2.5, "m01", 3, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("a,b\n", "line 1"),
        (HEADER, "no requests"),
        (HEADER + "0.1,m00,1,2\nx,m00,1,2\n", "line 3"),
        (HEADER + "0.1,m00,1\n", "line 2"),
        (HEADER + "-1,m00,1,2\n", "line 2: arrival_seconds"),
        (HEADER + "nan,m00,1,2\n", "line 2: arrival_seconds"),
        (HEADER + "0.1,m00,0,2\n", "line 2: a request has"),
    ],
)
def test_a_malformed_workload_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=message):
        workload.read(path)


@pytest.mark.parametrize("row", ["1", "1,x", "0,5"])
def test_malformed_lengths_are_refused_with_their_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text(f"input_tokens,output_tokens\n5,6\n{row}\n")
    with pytest.raises(InvalidArgument, match="line 3"):
        lengths.read(path)


@pytest.mark.parametrize(("rate", "duration"), [(-0.1, 10.0), (0.0, 10.0), (float("nan"), 10.0), (0.1, 0.0)])
def test_rates_and_durations_are_positive(rate: float, duration: float) -> None:
    with pytest.raises(InvalidArgument, match="must be positive"):
        workload.generate(names(1), rate, duration, Poisson(), LogNormal(), 0)
