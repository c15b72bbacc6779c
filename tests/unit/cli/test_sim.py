import json
from pathlib import Path

import pytest

from fakes.commands import hekaton

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
    done = hekaton("sim", "run", "--workload", str(DATA / "sharegpt-16models-0.1rps.csv"), "--gpus", "8")
    assert done.returncode == 0
    assert "token_attainment" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "none"], "unknown policy 'none'"),
        (["--policy-option", "none=1"], "no option 'none'"),
        (["--policy-option", "min_turn_s=x"], "is not NAME=NUMBER"),
        (["--device", "none"], "no profile of device 'none'"),
        (["--device", "a10"], "m08 needs 26.0 GB"),
        (["--rate", "-1"], "must be positive"),
        (["--bandwidth-gbps", "0"], "bandwidth must be positive"),
        (["--workload", "/nowhere.csv"], "/nowhere.csv"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = hekaton("sim", "run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_malformed_workload_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text("arrival_seconds,model,input_tokens,output_tokens\n1.0,m00,5,5\nsoon,m00,5,5\n")
    done = hekaton("sim", "run", "--workload", str(path))
    assert done.returncode == 2
    assert "line 3" in done.stderr
