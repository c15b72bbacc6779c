"""Hosts in network namespaces: each has an address on a bridge that belongs to the first, and processes of its own.

For a process that is alone in a namespace (`ALONE`), and a system with iproute2.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

ALONE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
PREFIX = "10.77.0"


@dataclass(frozen=True, slots=True)
class Host:
    """The first one's network is that of this process."""

    name: str
    address: str
    is_here: bool = False

    def command(self, *command: str) -> tuple[str, ...]:
        """What runs a command there."""
        return command if self.is_here else ("ip", "netns", "exec", self.name, *command)

    def cut(self) -> None:
        """Nothing passes to it or from it, and nobody is told."""
        _run("ip", "link", "set", self.name, "down")

    def mend(self) -> None:
        _run("ip", "link", "set", self.name, "up")

    @asynccontextmanager
    async def service(self, service: str, **settings: object) -> AsyncIterator[asyncio.subprocess.Process]:
        """`python -m hekaton_SERVICE` there; killed at the end if it still runs."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = self.command(sys.executable, "-m", f"hekaton_{service}", *flags)
        process = await asyncio.create_subprocess_exec(*command)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def make_hosts(here: str, others: Sequence[str]) -> list[Host]:
    """Joined by links of their own, by which alone they reach each other."""
    # That is where `ip netns` keeps names.
    _run("mount", "-t", "tmpfs", "none", "/run")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "bridge", "type", "bridge")
    hosts = [Host(here, f"{PREFIX}.1", is_here=True)]
    _run("ip", "addr", "add", f"{PREFIX}.1/24", "dev", "bridge")
    _run("ip", "link", "set", "bridge", "up")
    for number, name in enumerate(others, 2):
        host = Host(name, f"{PREFIX}.{number}")
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", name, "master", "bridge", "up")
        _run("ip", "-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", link, "up")
        hosts.append(host)
    return hosts


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
