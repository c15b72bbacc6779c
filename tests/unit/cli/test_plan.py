import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.commands import hekaton
from hekaton.cli.main import app

QUICK = ["--duration", "20", "--seeds", "1", "--jobs", "1"]
MARKET = """
classes:
  seven: {profile: qwen2.5-7b}
  large: {weight_gb: 145, kv_bytes_per_token: 327680, tensor_parallel: 4}
models:
  - {name: a, class: seven, count: 4, rate_per_s: 0.2}
  - {name: b, class: large, count: 2, rate_per_s: 0.1}
"""


@pytest.fixture
def market(tmp_path: Path) -> Path:
    path = tmp_path / "market.yaml"
    path.write_text(MARKET)
    return path


def test_a_plan_prints_gpus_savings_and_cost_and_draws_them(market: Path) -> None:
    picture = market.parent / "plan.svg"
    options = ["--policy", "slack", "--policy", "dedicated", "--gpu-hour-price", "2.5", "--svg", str(picture), *QUICK]
    done = hekaton("plan", "--catalog", str(market), *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours, dedicated = found["plans"]
    assert (dedicated["policy"], dedicated["gpus"], dedicated["cost_per_hour"]) == ("dedicated", 12, 30.0)
    assert [pool["devices_per_worker"] for pool in dedicated["pools"]] == [1, 4]
    assert ours["gpus"] < 12
    assert ours["saving_against_dedicated"] == pytest.approx(1 - ours["gpus"] / 12)
    assert any("OPT-66B" in note for note in found["assumptions"])
    assert "dedicated" in picture.read_text()


def test_a_plan_is_a_table_with_its_assumptions(market: Path) -> None:
    done = hekaton("plan", "--catalog", str(market), "--policy", "slack", "--slo", "1", "--slo", "0.5", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "0.5 x" in done.stdout
    assert "one instance a model" in done.stdout
    assert "cost" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a market"),
        (["--sample", "none"], "there are production, thousand"),
        (["--catalog", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--sample", "production", "--policy", "none"], "unknown policy 'none'"),
        (["--sample", "production", "--device", "none"], "no profile of device 'none'"),
        (["--sample", "production", "--svg", "/nowhere/a.svg"], "there is no folder /nowhere"),
        (["--sample", "thousand", "--device", "a10", "--policy", "slack"], "model 13b-000 needs 26.0 GB"),
        (["--sample", "production", "--slo", "-1"], "a TTFT and a TBT above 0"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments, "--jobs", "1"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_entry_that_is_wrong_is_named(market: Path) -> None:
    market.write_text(MARKET.replace("rate_per_s: 0.1", "rate_per_s: -1"))
    done = CliRunner().invoke(app, ["plan", "--catalog", str(market)])
    assert done.exit_code == 2
    assert "models[1].rate_per_s" in done.stderr
