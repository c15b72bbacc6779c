"""Settings: where they come from, and how a bad one ends a process."""

from pathlib import Path

import pytest

from hekaton.config import CONFIG_FILE_VARIABLE, WorkerSettings, load
from hekaton.policy.types import Role

REQUIRED = ["--redis-url", "unix:///tmp/none", "--device-memory", "700MiB"]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        load(WorkerSettings, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip()


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hekaton.toml"
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(path))
    return path


def test_flags_beat_the_environment_which_beats_the_file(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text('log_level = "error"\n[worker]\nthreads = 2\nmax_batch = 3\n[router]\nrouter_id = "r"\n')
    monkeypatch.setenv("HEKATON_MAX_BATCH", "5")
    monkeypatch.setenv("HEKATON_TIME_SCALE", "7")
    settings = load(WorkerSettings, [*REQUIRED, "--time-scale", "9"])
    assert (settings.log_level, settings.threads, settings.max_batch, settings.time_scale) == ("error", 2, 5, 9.0)
    assert settings.device_memory == 700 << 20
    assert settings.host_kv_memory_bytes == 350 << 20


def test_a_policy_has_options_from_flags_variable_and_file(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text('[worker]\npolicy = "aegaeon"\nrole = "decode"\npolicy_option = {q_max_s = 2.0}\n')
    settings = load(WorkerSettings, REQUIRED)
    assert (settings.policy, settings.role, settings.policy_option) == ("aegaeon", Role.DECODE, {"q_max_s": 2.0})
    monkeypatch.setenv("HEKATON_POLICY_OPTION", '{"q_max_s": 3}')
    assert load(WorkerSettings, REQUIRED).policy_option == {"q_max_s": 3.0}
    flags = ["--policy=slack", "--role=any", "--policy-option", "min_turn_s=1", "--policy-option", "affinity=2"]
    monkeypatch.delenv("HEKATON_POLICY_OPTION")
    config_file.write_text("")
    assert load(WorkerSettings, [*REQUIRED, *flags]).policy_option == {"min_turn_s": 1.0, "affinity": 2.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy=nope"], "unknown policy 'nope'"),
        (["--policy=request-level-sjf"], "runs in hekaton sim only"),
        (["--policy=aegaeon"], "set role to prefill or decode"),
        (["--policy-option", "x=1"], "has no option 'x'"),
    ],
)
def test_a_policy_that_cannot_run_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, [*REQUIRED, *flags])


def test_a_missing_setting_is_named_with_its_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, REQUIRED[:2])
    assert "--device-memory" in message
    assert "HEKATON_DEVICE_MEMORY" in message


def test_a_bad_value_is_refused_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "device_memory" in refused(capsys, [*REQUIRED[:2], "--device-memory", "lots"])
    assert "device:" in refused(capsys, [*REQUIRED, "--device", "toaster"])
    assert "threads" in refused(capsys, [*REQUIRED, "--threads", "0"])


def test_an_unknown_variable_is_refused_with_the_name_that_was_meant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEKATON_REDIS_ULR", "x")
    assert "did you mean HEKATON_REDIS_URL" in refused(capsys, REQUIRED)


def test_a_variable_of_another_service_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEKATON_SEGMENT_DIR", "/tmp/x")
    load(WorkerSettings, REQUIRED)


@pytest.mark.parametrize("text", ["[worker]\ndevice_memry = 1", "devise = 1", "router_id = 'at the top'", "= broken"])
def test_an_unknown_name_or_bad_syntax_in_the_file_is_refused(
    text: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text(text)
    assert str(config_file) in refused(capsys, REQUIRED)


def test_a_config_file_that_is_not_there_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hekaton.toml" in refused(capsys, REQUIRED)
