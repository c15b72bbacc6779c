"""The figures of `python -m bench.scheduling`, on loads that are small enough for a test."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from bench.scheduling import files, loads
from bench.scheduling.__main__ import main
from bench.scheduling.checks import Check
from bench.scheduling.runs import LARGE, SMALL, Bench, Load, model_of, parse, recorded
from typer.testing import CliRunner

from hekaton.errors import InvalidArgument
from hekaton.policy.registry import POLICIES
from hekaton.sim.run import Settings


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ThreadPoolExecutor(1) as executor:
        yield Bench(executor, (Load(5, 1.0),), duration_s=10.0, seeds=(0,))


def test_a_figure_holds_up_to_its_bounds_and_says_by_how_much_it_misses() -> None:
    assert Check("a", 0.9, least=0.9).holds
    assert Check("a", 0.9, most=0.9).holds
    low, high = Check("a", 0.8, least=0.9), Check("a", 1.0, 0.5, 0.75)
    assert (low.holds, high.holds) == (False, False)
    assert low.missed_by == pytest.approx(0.1)
    assert high.missed_by == pytest.approx(0.25)
    assert (low.bound, high.bound) == ("≥ 0.9", "≥ 0.5, ≤ 0.75")


def test_a_load_is_read_and_scaled_by_its_models() -> None:
    assert parse("164x0.1") == Load(164, 0.1)
    assert parse("164x0.1").scaled(0.8) == Load(131, 0.1)
    with pytest.raises(InvalidArgument, match="as in 178x0"):
        parse("164")


def test_models_are_found_by_their_class() -> None:
    assert (model_of(SMALL), model_of(LARGE), model_of(LARGE, 131)) == ("m00", "m08", "m138")


def test_every_point_of_the_artifact_has_its_file() -> None:
    known = files.workloads()
    assert len(known) == 18
    for points in files.ARTIFACT.values():
        assert points.keys() <= known.keys()


@pytest.mark.parametrize("policy", sorted(files.ARTIFACT))
def test_a_policy_of_the_paper_is_as_far_as_in_the_artifact(policy: str) -> None:
    load = Load(24, 0.5) if policy == "aegaeon" else Load(40, 0.1)
    report = recorded(files.workloads()[load], Settings(policy=policy, device="h100"))
    assert abs(report.token_attainment - files.ARTIFACT[policy][load]) <= files.TOLERANCE[policy]


def test_slack_is_held_against_the_best_of_the_others(bench: Bench) -> None:
    load = Load(16, 0.1)
    check = files.against_others(bench.executor, load, files.workloads()[load])
    assert check.holds
    assert any(name in check.note for name in POLICIES)


def test_uneven_bursty_and_wrongly_profiled_loads_are_measured(bench: Bench) -> None:
    found = [*loads.fairness(bench), *loads.beliefs(bench), *loads.bursts(bench)]
    assert len(found) == 5 + 4 + 1
    # A slow model is a quarter of so small a market.
    assert all(check.holds for check in found if "slower" not in check.what)


def test_a_hot_model_leaves_the_requests_of_the_others_as_they_were(bench: Bench) -> None:
    before, after, itself = loads.beside_a_hot_one(Load(4, 0.2), SMALL, bench.traffic(), 0)
    assert (before, after, itself) == (1.0, 1.0, 1.0)


def test_the_command_writes_its_figures_and_refuses_what_is_no_load(tmp_path: Path) -> None:
    app, written = typer.Typer(), tmp_path / "found.json"
    app.command()(main)
    arguments = ["bursts", "--sustained", "5x0.1", "--duration", "10", "--seeds", "1", "--jobs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(written)])
    assert done.exit_code == 0, done.output
    (figure,) = json.loads(written.read_text())["parts"]["bursts"]
    assert (figure["what"], figure["holds"]) == ("3 × 0.1: CV 4", True)
    refused = CliRunner().invoke(app, ["bursts", "--sustained", "many"])
    assert refused.exit_code == 2
    assert "MODELSxRATE" in refused.output
