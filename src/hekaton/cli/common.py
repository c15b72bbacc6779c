"""What the commands share: consoles, the router's address, errors as one clear line."""

import asyncio
import re
import signal
import threading
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from hekaton.config import ADDRESS_VARIABLE
from hekaton.engine.profiles import DEVICES, SOURCE_PREFIX
from hekaton.errors import HekatonError

DEFAULT_ADDRESS = "127.0.0.1:50051"
INTERRUPTED = 130
TERMINATED = 143
DEVICE = re.compile(r"cpu|cuda(:\d+)?|emulated:(\w+)")

console = Console(highlight=False, emoji=False)
stderr = Console(stderr=True, highlight=False, emoji=False)
T = TypeVar("T")

Address = Annotated[
    str, typer.Option("--address", envvar=ADDRESS_VARIABLE, help="The router, HOST:PORT.", show_default=True)
]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine. An error of hekaton or of a file ends the process with status 1 and its message.

    SIGTERM cancels it, as Ctrl-C does, so that it mends and removes what it must.
    """
    try:
        return asyncio.run(_terminable(work))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except HekatonError as error:
        fail(error.message)
    except OSError as error:
        fail(str(error))


async def _terminable(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task and threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def warn(message: str) -> None:
    console.print(message, style="yellow", markup=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)


def byte_size(text: str, option: str) -> int:
    """Parses 700MiB, 2GB, 1024. Raises a usage error that names the option."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        message = f"{text!r} is no size: say 700MiB, 2GiB or a number of bytes"
        raise typer.BadParameter(message, param_hint=option) from None


def check_device(device: str) -> None:
    """Raises a usage error that names what there is."""
    known = DEVICE.fullmatch(device)
    if known is None or (known[2] and known[2] not in DEVICES):
        emulated = ", ".join(f"{SOURCE_PREFIX}{name}" for name in sorted(DEVICES))
        message = f"{device!r} is no device: say cpu, cuda, cuda:N or one of {emulated}"
        raise typer.BadParameter(message, param_hint="--device")


def readable(nbytes: int) -> str:
    """Bytes for people: 513 MiB, 14.2 GiB."""
    return f"{nbytes / (1 << 20):,.0f} MiB" if nbytes < 10 << 30 else f"{nbytes / (1 << 30):,.1f} GiB"
