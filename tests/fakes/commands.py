"""The `hekaton` command in processes of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from hekaton.config import ADDRESS_VARIABLE

# A test run in a shell's background inherits SIGINT as ignored; a terminal's user does not.
ENTRY = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hekaton.cli.main import app; app()"
)
HEKATON = (sys.executable, "-c", ENTRY)
TIMEOUT_S = 500
UP = re.compile(r"router at (\S+)")
READY = "Ctrl-C stops it."


def environment(**changes: str) -> dict[str, str]:
    """This process's, for a wide terminal and without an address of a router."""
    inherited = {name: value for name, value in os.environ.items() if name != ADDRESS_VARIABLE}
    return inherited | {"COLUMNS": "200", "NO_COLOR": "1"} | changes


def hekaton(*arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command to its end; `address` is given to it in the environment."""
    known = environment(**{ADDRESS_VARIABLE: address} if address else {})
    return subprocess.run([*HEKATON, *arguments], env=known, capture_output=True, text=True, timeout=TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Up:
    """A running `hekaton up`. Its temporary files, and those of all that it started, are in `temporary`."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path

    def processes(self) -> set[int]:
        """Ids of the living processes that were started with this temporary directory: itself and its descendants."""
        mark = os.fsencode(self.temporary)
        return {int(folder.name) for folder in Path("/proc").glob("[0-9]*") if mark in _facts_of(folder)}

    def running(self, module: str) -> set[int]:
        """Those of its processes that run a module of Python."""
        mark = f"-m\0{module}\0".encode()
        return {pid for pid in self.processes() if mark in (Path("/proc") / str(pid) / "cmdline").read_bytes()}

    def until_gone(self, timeout_s: float) -> None:
        """Returns when none of its processes lives. Raises RetryError if some still do."""
        Retrying(retry=retry_if_result(bool), wait=wait_fixed(0.05), stop=stop_after_delay(timeout_s))(self.processes)


@contextmanager
def running_up(*options: str) -> Iterator[Up]:
    """`hekaton up` on a free port; killed at the end if it still runs."""
    # The embedded Redis has a unix socket there, and such a path is short.
    with tempfile.TemporaryDirectory(prefix="hk-") as temporary:
        command = [*HEKATON, "up", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", *options]
        known = environment(TMPDIR=temporary)
        with subprocess.Popen(
            command, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            up = Up(process, "", Path(temporary))
            try:
                yield Up(process, _address(process), Path(temporary))
            finally:
                process.kill()
                up.until_gone(TIMEOUT_S)


def _address(process: subprocess.Popen[str]) -> str:
    """The router's, once the pool is up and says so."""
    said = []
    for line in process.stdout or ():
        said.append(line)
        if line.startswith(READY):
            found = UP.search("".join(said))
            if found:
                return found[1]
    raise AssertionError(f"the pool is not up; it said {said}")


def _facts_of(process: Path) -> bytes:
    """Environment and command; a server that names itself writes over the first."""
    with suppress(OSError):
        return (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    return b""
