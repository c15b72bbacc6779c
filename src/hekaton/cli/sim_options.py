"""Options that the commands of the simulator share, and what they make of them."""

import math
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from multiprocessing import active_children, get_context
from os import cpu_count
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hekaton.cli.common import byte_size, stderr
from hekaton.engine.profiles import DEVICES
from hekaton.errors import HekatonError, InvalidArgument
from hekaton.policy.admission import Admission
from hekaton.policy.costs import DeviceProfile
from hekaton.sim import arrivals, lengths, market, measured
from hekaton.sim.arrivals import Arrivals, Gamma, OnOff, Poisson
from hekaton.sim.host import HostSettings
from hekaton.sim.lengths import Lengths
from hekaton.sim.market import Market

USAGE_ERROR = 2
GB = 1e9


class Pattern(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"
    ONOFF = "onoff"
    TRACE = "trace"


Gpus = Annotated[int, typer.Option(help="Devices in the pool.")]
Device = Annotated[str, typer.Option(help="a10, a100, h100, h800 or h20.")]
DeviceOrFile = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="a10, a100, h100, h800 or h20; or what `hekaton models show MODEL --json` printed: "
        "then every model is that one, on the device that has measured it.",
    ),
]
DeviceMemory = Annotated[
    str, typer.Option(help="For weights and KV, as 72GB; by default nine tenths of the device's.", show_default=False)
]
OwnBandwidthGbps = Annotated[
    float | None,
    typer.Option("--bandwidth-gbps", help="Host to device, in gigabytes a second.  [default: 16, or as the file says]"),
]
BandwidthGbps = Annotated[float, typer.Option(help="Host to device, in gigabytes a second.")]
HostKv = Annotated[str, typer.Option(help="Memory for KV of a host with eight devices.")]
HostWeights = Annotated[
    str, typer.Option(help="Memory for weights of such a host, as 640GB; by default for all.", show_default=False)
]
DiskGbps = Annotated[float, typer.Option(help="Disk to host, for weights that are not there, in gigabytes a second.")]
SwitchOverheadMs = Annotated[float, typer.Option(help="Before the first step of another model, besides the copy.")]
PolicyOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the policy; may be repeated.")
]
Rate = Annotated[float, typer.Option(help="Requests a second and model, on average.")]
ZipfExponent = Annotated[float, typer.Option("--zipf", help="Exponent of the models' popularity; 0 is all alike.")]
LengthsFile = Annotated[
    Path | None,
    typer.Option("--lengths", help=f"CSV of {','.join(lengths.HEADER)} to draw from; else log-normal."),
]
ArrivalPattern = Annotated[Pattern, typer.Option("--arrivals", help="How requests of a model come.")]
Burstiness = Annotated[
    float, typer.Option(help="Coefficient of variation of gamma gaps; other than 1 it implies --arrivals gamma.")
]
OnS = Annotated[float, typer.Option(help="Mean seconds of a spell of onoff arrivals.")]
OffS = Annotated[float, typer.Option(help="Mean seconds of a pause between spells.")]
ArrivalsFile = Annotated[
    Path | None,
    typer.Option(help="Of trace arrivals: a CSV whose first column is arrival_seconds, stretched to the rate."),
]
Ttft = Annotated[float, typer.Option(help="Seconds to the first token.")]
Tbt = Annotated[float, typer.Option(help="Seconds between tokens.")]
AdmissionMode = Annotated[
    Admission, typer.Option(help="What becomes of a request whose objective cannot be kept: it waits, or is refused.")
]
SloScale = Annotated[
    list[float] | None, typer.Option("--slo", help="Scales --ttft and --tbt; may be repeated.  [default: 1.0]")
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each point, with seeds 0, 1 and so on.")]
Jobs = Annotated[int, typer.Option(min=0, help="Processes; 0 is one for each CPU.")]
CatalogFile = Annotated[Path | None, typer.Option("--catalog", help="A market in YAML, instead of --models.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def memory_bytes(device_memory: str) -> int | None:
    return byte_size(device_memory, "--device-memory") if device_memory else None


def host_of(host_kv: str, host_weights: str, disk_gbps: float) -> HostSettings:
    weights = byte_size(host_weights, "--host-weights") if host_weights else math.inf
    return HostSettings(byte_size(host_kv, "--host-kv"), weights, disk_gbps * GB)


def policy_options(given: list[str] | None) -> dict[str, float]:
    options: dict[str, float] = {}
    for text in given or []:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise InvalidArgument(f"policy option {text!r} is not NAME=NUMBER") from None
    return options


def arrivals_of(pattern: Pattern, burstiness: float, on_s: float, off_s: float, file: Path | None) -> Arrivals:
    """Raises InvalidArgument for what does not make sense, or not together."""
    if (pattern is Pattern.TRACE) != (file is not None):
        raise InvalidArgument("--arrivals trace and --arrivals-file go together")
    if burstiness != 1 and pattern is not Pattern.GAMMA:
        if pattern is not Pattern.POISSON:
            raise InvalidArgument(f"--burstiness is of gamma arrivals, not of {pattern}")
        pattern = Pattern.GAMMA
    if pattern is Pattern.GAMMA:
        return Gamma(burstiness)
    if pattern is Pattern.ONOFF:
        return OnOff(on_s, off_s)
    return arrivals.read_trace(file) if file else Poisson()


def lengths_of(file: Path | None) -> Lengths:
    return lengths.read(file) if file else lengths.LogNormal()


def measured_on(device: str) -> DeviceProfile | None:
    """The profile that a file holds; None for the name of a device. Raises InvalidArgument, OSError."""
    return measured.read(Path(device)) if device not in DEVICES and _names_a_file(device) else None


def _names_a_file(device: str) -> bool:
    return device.endswith(".json") or "/" in device or Path(device).is_file()


def market_of(file: Path) -> Market:
    return market.read(file)


@contextmanager
def refusals() -> Iterator[None]:
    """Bad input ends the command with one clear line and status 2."""
    try:
        yield
    except (HekatonError, OSError, UnicodeDecodeError) as error:
        stderr.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(USAGE_ERROR) from None


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """What searches run on. An error, or Ctrl-C, ends it at once, whatever is running."""
    executor = ProcessPoolExecutor(jobs or cpu_count() or 1, mp_context=get_context("spawn"))
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown()


class Watch:
    """Shows on a terminal's stderr what searches have measured last, a line for each."""

    def __init__(self) -> None:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._lines = {"": self._progress.add_task("searching", total=None)}

    def __enter__(self) -> "Watch":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, name: str, text: str) -> None:
        if name not in self._lines:
            self._lines[name] = self._progress.add_task(name, total=None)
        self._progress.update(self._lines[name], description=escape(f"{name}: {text}"))
