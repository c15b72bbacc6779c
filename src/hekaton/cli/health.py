"""`hekaton health`: for scripts and container health checks."""

import os
from typing import Annotated

import typer

from hekaton.cli.common import console, run
from hekaton.config import tls_of
from hekaton.rpc.channel import open_channel
from hekaton.rpc.health import is_serving


def health(
    address: Annotated[str, typer.Argument(help="A service's address, HOST:PORT.")],
    service: Annotated[str, typer.Option(help="Full gRPC service name; the whole server if empty.")] = "",
) -> None:
    """Ask a service for its health: exit status 0 if it is SERVING, 1 if not."""
    serving = run(_ask(address, service))
    console.print("SERVING" if serving else "NOT SERVING")
    raise typer.Exit(0 if serving else 1)


async def _ask(address: str, service: str) -> bool:
    async with open_channel(address, tls=tls_of(os.environ)) as channel:
        return await is_serving(channel, service)
