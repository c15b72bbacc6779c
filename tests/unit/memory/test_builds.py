"""Shared builds, with small programs as builders: real children, real files."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hekaton.errors import EngineFailed
from hekaton_memory.builder import Progress, run_builder
from hekaton_memory.builds import Builds
from hekaton_memory.cache import Cache
from hekaton_memory.checkpoint import Checkpoint
from hekaton_memory.segments import Segments

NBYTES = 300
PROGRAM = """
import os, pathlib, sys
digest, gate, log = sys.argv[1] * 16, sys.argv[2], sys.argv[3]
with open(log, "a") as lines:
    print(os.getpid(), file=lines)
pathlib.Path(digest + ".img.part").write_bytes(bytes(300))
print('{"progress":[100,300]}', flush=True)
open(gate).read()
if digest[0] == "x":
    sys.exit("no such thing")
os.rename(digest + ".img.part", digest + ".img")
pathlib.Path(digest + ".json").write_text("{}")
print('{"prepared":"%s"}' % digest)
"""


class Site:
    """Builds whose children wait at a gate (a FIFO) after their first progress."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory / "segments"
        self.gate = directory / "gate"
        self.log = directory / "log"
        self.log.touch()
        os.mkfifo(self.gate)
        self.segments = Segments(self.directory)
        self.cache = Cache(self.segments, 1000)
        self.builds = Builds(self.segments, self.cache, limit, self.build)
        self.under_way = asyncio.Event()

    async def build(self, source: str, dtype: str, workplace: Path, on_progress: Callable[[Progress], None]) -> str:
        def note(progress: Progress) -> None:
            self.under_way.set()
            on_progress(progress)

        program = f"import os; os.chdir({str(workplace)!r})\n{PROGRAM}"
        command = [sys.executable, "-c", program, source, str(self.gate), str(self.log)]
        return await run_builder(command, workplace, note)

    async def wait_for(self, letter: str) -> str:
        """One who wants an image, and holds it until the end of the test's next step."""
        async with self.builds.joined(Checkpoint(letter, "", (), NBYTES)) as build:
            async for _ in build.progress():
                pass
            return build.digest

    async def open_gate(self) -> None:
        await asyncio.to_thread(self.gate.write_text, "go")

    def children(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path, limit=1)
    yield site
    await site.builds.aclose()
    site.cache.check_integrity()
    assert not list(site.directory.glob("build-*"))
    site.segments.close()
    assert not site.directory.exists()


async def test_those_who_wait_for_one_checkpoint_share_its_build(site: Site) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiters = [tasks.create_task(site.wait_for("a")) for _ in range(3)]
        await site.under_way.wait()
        await site.open_gate()
    assert {waiter.result() for waiter in waiters} == {"a" * 16}
    assert len(site.children()) == 1
    assert [(image.nbytes, image.leases) for image in site.cache.images()] == [(NBYTES, 0)]


async def test_a_build_goes_on_while_one_waits_and_dies_with_the_last(site: Site) -> None:
    first, second = (asyncio.create_task(site.wait_for("a")) for _ in range(2))
    await site.under_way.wait()
    (child,) = site.children()
    first.cancel()
    await asyncio.wait([first])
    os.kill(child, 0)
    second.cancel()
    await asyncio.wait([second])
    await site.builds.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert list(site.directory.iterdir()) == []
    assert site.cache.images() == []


async def test_who_comes_after_an_abandoned_build_gets_one_of_his_own(site: Site) -> None:
    first = asyncio.create_task(site.wait_for("a"))
    await site.under_way.wait()
    first.cancel()
    await asyncio.wait([first])
    site.under_way.clear()
    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(site.wait_for("a"))
        await site.under_way.wait()
        await site.open_gate()
    assert second.result() == "a" * 16
    assert len(site.children()) == 2


async def test_no_more_builds_run_than_the_limit(site: Site) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiters = [tasks.create_task(site.wait_for(letter)) for letter in "ab"]
        for count in (1, 2):
            await site.under_way.wait()
            assert len(site.children()) == count
            site.under_way.clear()
            await site.open_gate()
    assert [waiter.result() for waiter in waiters] == ["a" * 16, "b" * 16]


async def test_all_who_wait_hear_why_a_build_failed(site: Site) -> None:
    waiters = [asyncio.create_task(site.wait_for("x")) for _ in range(2)]
    await site.under_way.wait()
    await site.open_gate()
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in errors] == [EngineFailed] * 2
    assert all("no such thing" in str(error) for error in errors)


async def test_an_image_is_pinned_until_who_waited_for_it_has_left(site: Site) -> None:
    checkpoint = Checkpoint("a", "", (), NBYTES)
    async with site.builds.joined(checkpoint) as build:
        await site.under_way.wait()
        await site.open_gate()
        async for _ in build.progress():
            pass
        assert [image.leases for image in site.cache.images()] == [1]
    assert [image.leases for image in site.cache.images()] == [0]
    assert site.builds.digest_of(checkpoint) == build.digest
    assert site.builds.digest_of(Checkpoint("a", "", (("config.json", 1, 1),), NBYTES)) == ""
