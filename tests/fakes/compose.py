"""Reads a compose file and runs its services as processes on loopback, exactly as declared.

What a container would have to itself is given to each service here: names become loopback ports, mount points become
directories. Commands, environment, health checks and the order of starting are the file's own.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HEALTH_DEADLINE_S = 60


@dataclass(frozen=True)
class ComposeFile:
    """A compose file with its variables filled in."""

    services: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, *paths: Path, variables: Mapping[str, str] | None = None) -> "ComposeFile":
        """Later files override earlier ones, as `docker compose -f A -f B` does for environment and command."""
        services: dict[str, dict[str, Any]] = {}
        for path in paths:
            document = yaml.safe_load(_interpolate(path.read_text(), variables or {}))
            for name, service in document["services"].items():
                old = services.get(name, {})
                environment = old.get("environment", {}) | service.get("environment", {})
                services[name] = old | service | {"environment": environment}
        return cls(services)

    def start_order(self) -> list[str]:
        """Every service after those that it depends on."""
        order: list[str] = []

        def visit(name: str) -> None:
            for needed in self.services[name].get("depends_on", {}):
                visit(needed)
            if name not in order:
                order.append(name)

        for name in self.services:
            visit(name)
        return order


@dataclass
class LocalStack:
    """The services of a compose file on this machine. `substitutions` replaces text of commands and environment."""

    compose: ComposeFile
    substitutions: dict[str, str]
    log_dir: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[tuple[str, int], int] = field(default_factory=dict)

    def address(self, service: str, port: int) -> str:
        """Where a service's container port is reached."""
        return f"127.0.0.1:{self.ports.setdefault((service, port), free_port())}"

    async def start(self, name: str) -> None:
        """Starts one service and waits until its own health check passes."""
        self.spawn(name)
        await self._healthy(name, self.compose.services[name]["healthcheck"]["test"])

    def spawn(self, name: str, more: Sequence[str] = ()) -> None:
        """Starts one service, with `more` arguments that a container would not need."""
        service = self.compose.services[name]
        declared = service.get("environment", {})
        environment = {key: self._local(name, str(value)) for key, value in declared.items()}
        command = [*(self._local(name, part) for part in service["command"]), *more]
        with (self.log_dir / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                _on_this_machine(command), env=_clean_environment() | environment, stdout=output, stderr=output
            )

    async def _healthy(self, name: str, test: list[str]) -> None:
        assert test[0] == "CMD"
        command = _on_this_machine([self._local(name, part) for part in test[1:]])
        for _ in range(HEALTH_DEADLINE_S):
            assert self.processes[name].poll() is None, (self.log_dir / f"{name}.log").read_text()
            check = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_clean_environment()
            )
            if await check.wait() == 0:
                return
            await asyncio.sleep(0.5)
        raise TimeoutError(f"{name} is not healthy: {(self.log_dir / f'{name}.log').read_text()}")

    def _local(self, name: str, text: str) -> str:
        for old, new in self.substitutions.items():
            text = text.replace(old, new)
        names = "|".join(self.compose.services)
        own = re.compile(rf"\b({names}):(\d+)|^(?:0\.0\.0\.0|127\.0\.0\.1):(\d+)$")
        return own.sub(lambda match: self.address(match[1] or name, int(match[2] or match[3])), text)

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def local_stack(compose: ComposeFile, substitutions: dict[str, str], log_dir: Path) -> AsyncIterator[LocalStack]:
    stack = LocalStack(compose, substitutions, log_dir)
    try:
        yield stack
    finally:
        await asyncio.to_thread(stack.stop)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _interpolate(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: variables.get(m[1], m[2] or ""), text)


def _on_this_machine(command: list[str]) -> list[str]:
    programs = {"python": sys.executable, "hekaton": str(Path(sys.executable).parent / "hekaton")}
    return [programs.get(command[0], command[0]), *command[1:]]


def _clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("HEKATON_")}
