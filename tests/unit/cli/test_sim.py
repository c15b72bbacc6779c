import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.commands import hekaton
from hekaton.cli.main import app

DATA = Path(__file__).parents[3] / "bench" / "data"
KEYS = {
    "policy", "models", "gpus", "requests", "token_attainment", "request_attainment", "qos", "ttft_p50_s", "ttft_p99_s",
    "min_model_attainment", "switches", "exposed_switch_s", "gpu_busy_fraction", "copy_busy_fraction", "unfinished",
    "wall_s",
}  # fmt: skip


def test_a_generated_run_prints_its_report_as_json() -> None:
    lengths = str(DATA / "sharegpt_lengths_sample.csv")
    done = hekaton("sim", "run", "--models", "8", "--gpus", "2", "--duration", "30", "--lengths", lengths, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report.keys() >= KEYS
    assert (report["policy"], report["gpus"], report["unfinished"]) == ("slack", 2, 0)


def test_a_workload_file_is_run_and_shown_as_a_table() -> None:
    done = hekaton("sim", "run", "--workload", str(DATA / "workloads" / "sharegpt-16models-0.1rps.csv"), "--gpus", "8")
    assert done.returncode == 0
    assert "token_attainment" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "none"], "unknown policy 'none'"),
        (["--policy-option", "none=1"], "no option 'none'"),
        (["--policy-option", "min_turn_s=x"], "is not NAME=NUMBER"),
        (["--device", "none"], "no profile of device 'none'"),
        (["--device", "/nowhere.json"], "/nowhere.json"),
        (["--device", "a10"], "m08 needs 26.0 GB"),
        (["--rate", "-1"], "must be positive"),
        (["--bandwidth-gbps", "0"], "bandwidth must be positive"),
        (["--workload", "/nowhere.csv"], "/nowhere.csv"),
        (["--seed", "-1"], "seed"),
        (["--zipf", "-1"], "exponent of Zipf"),
        (["--burstiness", "-2"], "coefficient of variation"),
        (["--arrivals", "onoff", "--on-s", "0"], "a spell lasts"),
        (["--arrivals", "onoff", "--burstiness", "2"], "--burstiness is of gamma arrivals"),
        (["--arrivals", "trace"], "--arrivals-file go together"),
        (["--arrivals-file", "/nowhere.csv", "--arrivals", "trace"], "/nowhere.csv"),
        (["--catalog", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["sim", "run", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


COSTS = {
    "weight_bytes": 500_000_000, "kv_bytes_per_token": 50_000, "load_s": 0.05, "prefill_base_s": 0.05,
    "prefill_s_per_token": 0.001, "step_base_s": 0.08, "step_s_per_request": 0.005, "step_s_per_context_token": 0.0,
}  # fmt: skip
PROFILE: dict[str, object] = {"device": "cpu", "device_memory_bytes": 1_200_000_000, "costs": COSTS}


def test_a_measured_profile_is_the_device_and_every_model_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"name": "any", "profiles": [PROFILE]}))
    asked = ["--models", "4", "--gpus", "2", "--duration", "20", "--rate", "0.2", "--tbt", "1", "--json"]
    reports = []
    for more in ([], ["--bandwidth-gbps", "0.1"]):
        done = CliRunner().invoke(app, ["sim", "run", "--device", str(path), *asked, *more])
        assert done.exit_code == 0, done.stderr
        reports.append(json.loads(done.stdout))
    measured, narrow = reports
    assert (measured["device"], measured["models"], measured["unfinished"]) == ("cpu", 4, 0)
    # A hundred times as long for each load.
    assert narrow["copy_busy_fraction"] > measured["copy_busy_fraction"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "malformed"),
        ("{}", "profiles"),
        (json.dumps({"profiles": []}), "no worker has measured"),
        (json.dumps({"profiles": [PROFILE, {**PROFILE, "device": "cuda"}]}), "profiles of cpu, cuda"),
        (json.dumps({"profiles": [{**PROFILE, "costs": {**COSTS, "load_s": -1}}]}), "must be above 0"),
        (json.dumps({"profiles": [{**PROFILE, "costs": {"load_s": 1}}]}), "weight_bytes"),
    ],
)
def test_a_bad_profile_is_named_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    done = CliRunner().invoke(app, ["sim", "run", "--device", str(path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert str(path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_profile_and_a_catalog_do_not_go_together(tmp_path: Path) -> None:
    path, market = tmp_path / "profile.json", tmp_path / "m.yaml"
    path.write_text(json.dumps({"profiles": [PROFILE]}))
    market.write_text(MARKET.replace("KIND", "seven"))
    done = CliRunner().invoke(app, ["sim", "run", "--device", str(path), "--catalog", str(market)])
    assert done.exit_code == 2
    assert "a catalog says what its models cost" in done.stderr


def test_a_malformed_workload_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text("arrival_seconds,model,input_tokens,output_tokens\n1.0,m00,5,5\nsoon,m00,5,5\n")
    done = hekaton("sim", "run", "--workload", str(path))
    assert done.returncode == 2
    assert "line 3" in done.stderr


MARKET = """
classes:
  seven: {profile: qwen2.5-7b}
  large: {weight_gb: 145, kv_bytes_per_token: 327680, tensor_parallel: 4}
models:
  - {name: a, class: KIND, count: 3, rate_per_s: 0.2}
"""


@pytest.mark.parametrize(("kind", "gpus"), [("seven", 2), ("large", 4)])
def test_a_catalogs_models_are_run_at_their_rates(tmp_path: Path, kind: str, gpus: int) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MARKET.replace("KIND", kind))
    done = CliRunner().invoke(app, ["sim", "run", "--catalog", str(path), "--gpus", str(gpus), "--json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["models"], report["gpus"], report["unfinished"]) == (3, gpus, 0)


@pytest.mark.parametrize(
    "pattern",
    [
        ["--burstiness", "4"],
        ["--arrivals", "onoff", "--on-s", "5", "--off-s", "5"],
        ["--arrivals", "trace", "--arrivals-file", str(DATA / "workloads" / "sharegpt-16models-0.1rps.csv")],
    ],
)
def test_requests_come_as_they_are_asked_to(pattern: list[str]) -> None:
    plain, shaped = (
        json.loads(CliRunner().invoke(app, ["sim", "run", "--models", "4", "--json", *options]).stdout)
        for options in ([], pattern)
    )
    assert shaped["requests"] > 0
    assert shaped["end_s"] != plain["end_s"]


def test_sustain_prints_the_models_and_what_was_measured() -> None:
    options = ["--gpus", "1", "--rate", "0.5", "--duration", "20", "--seeds", "2", "--hint", "6", "--jobs", "1"]
    done = hekaton("sim", "sustain", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    passed = {point["models"]: point["token_attainment"] >= 0.9 for point in found["points"]}
    assert found["policy"] == "slack"
    assert passed[found["sustained_models"]]
    assert not all(passed.values())


def test_compare_prints_every_policy_and_its_share() -> None:
    options = [
        "--gpus",
        "2",
        "--rate",
        "2",
        "--duration",
        "2",
        "--tbt",
        "0.015",
        "--seeds",
        "1",
        "--hint",
        "5",
        "--jobs",
        "1",
    ]
    done = hekaton("sim", "compare", *options, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["rate_per_s"] == 2
    ours, ceiling = row["policies"]["slack"], row["ceiling"]
    assert ours["share_of_ceiling"] == ours["sustained_models"] / ceiling["sustained_models"]
    assert row["policies"]["aegaeon"]["policy_options"].keys() == {"q_max_s", "prefill_workers"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sustain", "--policy", "none"], "unknown policy 'none'"),
        (["sustain", "--device", "none"], "no profile of device 'none'"),
        (["sustain", "--rate", "0"], "rates must be positive"),
        (["compare", "--slo", "0"], "SLO scale are positive"),
        (["compare", "--duration", "-1"], "the duration must be positive"),
    ],
)
def test_a_search_for_what_makes_no_sense_ends_in_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["sim", *arguments, "--jobs", "1"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
