from collections import Counter
from pathlib import Path

import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Gamma, Poisson
from hekaton.sim.catalog import names
from hekaton.sim.lengths import LogNormal, Sampled
from hekaton.sim.workload import Arrival

FIVE = dict.fromkeys(names(5), 1.0)
HEADER = "arrival_seconds,model,input_tokens,output_tokens\n"


def test_a_workload_depends_on_its_seed_only_and_lengths_not_on_arrivals() -> None:
    one, again, other = (workload.generate(FIVE, 20.0, Poisson(), LogNormal(), seed) for seed in (7, 7, 8))
    assert one == again != other
    bursts = workload.generate(FIVE, 20.0, Gamma(2.0), LogNormal(), 7)
    shared = min(len(one), len(bursts), 20)
    drawn = [(arrival.input_tokens, arrival.output_tokens) for arrival in one[:shared]]
    assert Sampled(drawn).pairs == drawn
    assert all(arrival.input_tokens >= 1 and arrival.output_tokens >= 1 for arrival in bursts)


def test_more_models_leave_the_arrivals_of_the_others_as_they_were() -> None:
    few, many = (
        workload.generate(dict.fromkeys(names(count), 0.5), 30.0, Poisson(), LogNormal(), 3) for count in (4, 6)
    )
    kept = [(one.arrival_s, one.model) for one in many if one.model in names(4)]
    assert kept == [(one.arrival_s, one.model) for one in few]


def test_every_model_is_asked_for_at_its_own_rate() -> None:
    asked = workload.generate({"a": 1.0, "b": 4.0}, 2000.0, Poisson(), LogNormal(), 1)
    counts = Counter(one.model for one in asked)
    assert counts["b"] / counts["a"] == pytest.approx(4, rel=0.1)


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        workload.generate(FIVE, 20.0, Poisson(), LogNormal(), -1)


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
        workload.generate({"m00": rate}, duration, Poisson(), LogNormal(), 0)
