"""Settings: where they come from, and how a bad one ends a process."""

from pathlib import Path

import pytest

from hekaton.config import CONFIG_FILE_VARIABLE, WorkerSettings, load

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
    monkeypatch.setenv("HEKATON_MIN_TURN_S", "7")
    settings = load(WorkerSettings, [*REQUIRED, "--min-turn-s", "9"])
    assert (settings.log_level, settings.threads, settings.max_batch, settings.min_turn_s) == ("error", 2, 5, 9.0)
    assert settings.device_memory == 700 << 20


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
