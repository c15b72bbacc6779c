"""What the commands share: consoles, the router's address, errors as one clear line."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from hekaton.config import ADDRESS_VARIABLE
from hekaton.errors import HekatonError, Unavailable

DEFAULT_ADDRESS = "127.0.0.1:50051"
INTERRUPTED = 130

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
T = TypeVar("T")

Address = Annotated[
    str, typer.Option("--address", envvar=ADDRESS_VARIABLE, help="The router, HOST:PORT.", show_default=True)
]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine. An error of hekaton ends the process with status 1 and its message."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Unavailable as error:
        fail(f"{error.message}. Is a pool up at this address? Start one with `hekaton up`.")
    except HekatonError as error:
        fail(error.message)


def fail(message: str) -> NoReturn:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)


def byte_size(text: str) -> int:
    """Parses 700MiB, 2GB, 1024. Raises a usage error."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is no size: say 700MiB, 2GiB or a number of bytes") from None


def mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.0f} MiB"
