"""What the commands say of themselves, and to somebody who holds them wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hekaton import __version__
from hekaton.cli.main import app
from hekaton.config import ADDRESS_VARIABLE

ABSENT = "127.0.0.1:1"
SAMPLING = ("--max-tokens", "--temperature", "--seed", "--address")
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def invoke(*arguments: str) -> Result:
    """In a terminal so wide that no message is wrapped."""
    wide = {"COLUMNS": "300", "TERMINAL_WIDTH": "300", ADDRESS_VARIABLE: None}
    return CliRunner(env=wide).invoke(app, arguments)


def refusal(*arguments: str) -> str:
    """The message of a usage error."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    return STYLE.sub("", result.stderr)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "",
            (
                "--version",
                "--tls-ca",
                "--tls-cert",
                "--tls-key",
                "certs",
                "demo",
                "up",
                "generate",
                "chat",
                "models",
                "pool",
                "health",
            ),
        ),
        ("demo", ("--device", "--device-memory", "--dtype", "--max-tokens", "--models-dir", "--json")),
        (
            "up",
            (
                "--workers",
                "--device",
                "--models",
                "--routers",
                "--listen",
                "--redis-url",
                "--data-dir",
                "--shm-dir",
                "--tls",
            ),
        ),
        ("generate", ("model", "prompt", "--chat", "--top-p", "--top-k", *SAMPLING)),
        ("chat", ("model", *SAMPLING)),
        ("models", ("add", "list", "show", "rm", "pin", "unpin", "preload", "alias", "unalias", "fetch-demo")),
        ("models add", ("name", "source", "--dtype", "--ttft", "--tbt", "--tool-parser", "--address")),
        ("models list", ("--address", ADDRESS_VARIABLE)),
        ("models show", ("name", "--json", "--address")),
        ("models rm", ("name", "--address")),
        ("models fetch-demo", ("--dir",)),
        ("keys create", ("tenant", "--model", "--requests-per-minute", "--concurrent", "--admin", "--redis-url")),
        ("certs", ("directory", "names")),
        ("keys revoke", ("key_id", "--redis-url")),
        ("pool", ("--watch", "--address")),
        ("bench serve", ("--model", "--workload", "--rate", "--ttft", "--slo", "--time-scale", "--json", "--svg")),
        ("health", ("address", "--service")),
    ],
)
def test_help_names_everything_that_can_be_given(command: str, options: tuple[str, ...]) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert [option for option in options if option not in STYLE.sub("", result.stdout)] == []


def test_the_version_is_told() -> None:
    assert invoke("--version").stdout == f"hekaton {__version__}\n"


@pytest.mark.parametrize("command", ["up", "demo"])
def test_an_unknown_device_is_told_which_there_are(command: str) -> None:
    message = refusal(command, "--device", "gpu")
    assert "--device: 'gpu' is no device: say cpu, cuda, cuda:N or one of emulated:a10, emulated:a100," in message
    assert "'emulated:abacus' is no device" in refusal(command, "--device", "emulated:abacus")


@pytest.mark.parametrize(
    ("command", "option"), [("up", "--device-memory"), ("up", "--host-memory"), ("demo", "--device-memory")]
)
def test_a_bad_size_is_told_how_sizes_look(command: str, option: str) -> None:
    assert f"{option}: 'lots' is no size: say 700MiB, 2GiB or a number of bytes" in refusal(command, option, "lots")


@pytest.mark.parametrize("name", ["", "mine="])
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing"
    assert f"--models: {missing} is not a directory" in refusal("up", "-m", f"{name}{missing}")


def test_a_bad_address_to_listen_on_is_told_how_addresses_look() -> None:
    assert "'here' is no address: say HOST:PORT" in refusal("up", "--listen", "here")


def test_a_report_that_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"{missing} is not a directory" in refusal("demo", "--json", str(missing / "out.json"))


def test_half_an_objective_is_refused() -> None:
    assert "give both or neither" in refusal("models", "add", "m", "emulated:qwen2.5-7b", "--ttft", "1")


@pytest.mark.parametrize("command", ["generate m hello", "models list", "models rm m", "pool", "pool --watch"])
def test_without_a_router_there_is_one_line_that_says_how_to_start_one(command: str) -> None:
    result = invoke(*command.split(), "--address", ABSENT)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: no router answers at {ABSENT}: start a pool with `hekaton up`, or give the address of one\n"
    )


def test_a_pool_that_cannot_start_ends_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = invoke("up", "--device", "emulated:h800", "--listen", "127.0.0.1:0", "--log-dir", str(file))
    assert result.exit_code == 1
    assert result.stderr == f"error: [Errno 17] File exists: '{file}'\n"


def test_help_comes_without_torch() -> None:
    code = (
        "import sys\nfrom hekaton.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("content", "says"), [("{", "is no JSON"), ("[1]", "holds no JSON object")])
def test_a_schema_that_is_none_is_refused_by_its_file(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(content)
    message = refusal("generate", "m", "hello", "--json-schema", str(file), "--address", ABSENT)
    assert "--json-schema" in message
    assert says in message


def test_a_class_that_is_none_is_refused_with_those_there_are() -> None:
    message = refusal("generate", "m", "hello", "--class", "soon", "--address", ABSENT)
    assert all(name in message for name in ("interactive", "standard", "batch"))
