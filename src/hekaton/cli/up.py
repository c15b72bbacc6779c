"""`hekaton up`: a whole pool on this machine."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hekaton.cli.common import DEFAULT_ADDRESS, byte_size, check_device, console, fail, run, warn
from hekaton.cli.sim_options import policy_options
from hekaton.cli.supervisor import EMULATED, Stack, StackOptions
from hekaton.client import Client, ClientTls
from hekaton.errors import HekatonError, InvalidArgument, StoreUnavailable
from hekaton.facts import Tenant
from hekaton.policy.live import live_policy
from hekaton.rpc.tls import CertificateFiles
from hekaton.store.connect import connect
from hekaton.store.tenants import Tenants

OPERATOR = "operator"
DEFAULT_HTTP = "127.0.0.1:8000"
LISTEN = re.compile(r"unix:.+|.+:\d+")


def up(
    workers: Annotated[int, typer.Option(min=1, max=256, help="Workers, one device each.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda[:N], or emulated:NAME (a10, a100, h100, h800, h20).")] = "cpu",
    device_memory: Annotated[str, typer.Option(help="Memory of one device, e.g. 700MiB.")] = "2GiB",
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "-m", help="A model to register: DIR, NAME=DIR or NAME=emulated:CLASS. Repeatable."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of these models: float32, bfloat16, float16; their own if empty.")] = "",
    routers: Annotated[int, typer.Option(min=1, max=64, help="Routers; the first one listens at --listen.")] = 1,
    schedulers: Annotated[int, typer.Option(min=1, max=16, help="One leads, the others stand by.")] = 1,
    listen: Annotated[str, typer.Option(help="The first router's address.")] = DEFAULT_ADDRESS,
    http_listen: Annotated[
        str, typer.Option(help="The first router's OpenAI-compatible HTTP API; '' turns it off.")
    ] = DEFAULT_HTTP,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for API keys; see hekaton keys.")] = False,
    tls: Annotated[
        Path | None, typer.Option(help="TLS everywhere, with the certificate in this directory; made if there is none.")
    ] = None,
    redis_url: Annotated[str, typer.Option(help="An external Redis; an embedded server if empty.")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the embedded Redis keeps its data; it forgets all without.")
    ] = None,
    host_memory: Annotated[str, typer.Option(help="Budget of the host's weight cache, e.g. 8GiB.")] = "",
    shm_dir: Annotated[Path | None, typer.Option(help="Where weight images live; a tmpfs if there is one.")] = None,
    otlp_endpoint: Annotated[str, typer.Option(help="Send traces there, e.g. http://127.0.0.1:4317.")] = "",
    time_scale: Annotated[float | None, typer.Option(min=0.001, help="Emulated devices: stretch of time.")] = None,
    policy: Annotated[str, typer.Option(help="Who runs and where; aegaeon needs at least two workers.")] = "slack",
    policy_option: Annotated[list[str] | None, typer.Option(help="Of the policy, NAME=NUMBER. Repeatable.")] = None,
    log_dir: Annotated[Path | None, typer.Option(help="Keep the services' logs there.")] = None,
) -> None:
    """Start a whole pool on this machine: Redis, memory, scheduler, workers, routers. Ctrl-C stops it."""
    check_device(device)
    byte_size(device_memory, "--device-memory")
    if host_memory:
        byte_size(host_memory, "--host-memory")
    _check_address(listen, "--listen")
    if http_listen:
        _check_address(http_listen, "--http-listen")
    named = [_named(model) for model in models or []]
    options = StackOptions(
        device=device,
        device_memory=device_memory,
        workers=workers,
        routers=routers,
        schedulers=schedulers,
        listen=listen,
        http_listen=http_listen,
        auth=auth,
        tls_dir=tls,
        redis_url=redis_url,
        data_dir=data_dir,
        shm_dir=shm_dir,
        host_memory=host_memory,
        otlp_endpoint=otlp_endpoint,
        time_scale=time_scale,
        policy=policy,
        policy_options=_policy_options(policy, policy_option, workers),
        log_dir=log_dir,
    )
    run(_up(options, named, dtype))


def _check_address(address: str, flag: str) -> None:
    if not LISTEN.fullmatch(address):
        raise typer.BadParameter(f"{address!r} is no address: say HOST:PORT; port 0 takes a free one", param_hint=flag)


def _policy_options(policy: str, given: list[str] | None, workers: int) -> dict[str, float]:
    """Raises a usage error for a policy that such a pool cannot run."""
    try:
        options = policy_options(given)
        live_policy(policy, options).roles(workers)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--policy") from None
    return options


def _named(model: str) -> tuple[str, str]:
    """Name and source of DIR, NAME=DIR or NAME=emulated:CLASS."""
    name, given, source = model.partition("=")
    if not given:
        name, source = Path(model).expanduser().resolve().name, model
    if source.startswith(EMULATED):
        return name.removeprefix(EMULATED), source
    path = Path(source).expanduser()
    if not path.is_dir():
        raise typer.BadParameter(f"{source} is not a directory: give a checkpoint's", param_hint="--models")
    return name, str(path.resolve())


async def _up(options: StackOptions, models: list[tuple[str, str]], dtype: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    serve = asyncio.create_task(_serve(options, models, dtype, stop), name="serve")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    # A signal while the pool still starts ends the start.
    await asyncio.wait((serve, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not serve.done():
        console.print("stopping")
        serve.cancel()
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    try:
        await serve
    except asyncio.CancelledError:
        console.print("stopped")


async def _serve(options: StackOptions, models: list[tuple[str, str]], dtype: str, stop: asyncio.Event) -> None:
    console.print("starting the pool")
    async with Stack(options, warn) as stack, _operator(stack, options.auth) as api_key:
        names = await register(stack.address, models, dtype, api_key, stack.tls)
        if api_key:
            console.print(f"\nKeys are asked for. Until the pool stops the operator's is\n  {api_key}", markup=False)
            console.print(f"  hekaton keys create TENANT --redis-url {stack.redis_url}", markup=False, soft_wrap=True)
        _welcome(stack, options, names)
        await stop.wait()


@asynccontextmanager
async def _operator(stack: Stack, auth: bool) -> AsyncIterator[str | None]:
    """An administrator's key for as long as the pool is up; None if no keys are asked for."""
    if not auth:
        yield None
        return
    async with connect(stack.redis_url) as redis:
        tenants = Tenants(redis)
        await tenants.put(Tenant(OPERATOR, admin=True))
        api_key = await tenants.create_key(OPERATOR)
        try:
            yield api_key
        finally:
            with suppress(StoreUnavailable):
                await tenants.revoke(api_key.split("-")[1])


async def register(
    address: str,
    models: list[tuple[str, str]],
    dtype: str,
    api_key: str | None = None,
    tls: ClientTls | None = None,
) -> list[str]:
    """Registers models one after the other; one that fails is reported and left out."""
    names = []
    async with Client(address, api_key=api_key, tls=tls) as client:
        for name, source in models:
            try:
                with console.status(f"preparing {name}"):
                    await client.register_model(name, source, dtype="" if source.startswith(EMULATED) else dtype)
            except HekatonError as error:
                console.print(f"[red]{escape(name)} is not registered:[/red] {escape(error.message)}", soft_wrap=True)
                continue
            names.append(name)
            console.print(f"registered {name}")
    if models and not names:
        fail("no model could be registered")
    return names


def _welcome(stack: Stack, options: StackOptions, names: list[str]) -> None:
    model = names[0] if names else "MODEL"
    address = "" if stack.address == DEFAULT_ADDRESS else f" --address {stack.address}"
    console.print(f"\n[bold]hekaton is up[/bold]: {options.workers} × {options.device}, router at {stack.address}\n")
    console.print("Try, in another terminal:")
    if options.tls_dir:
        ca = CertificateFiles.of(options.tls_dir.resolve()).ca
        console.print(f"  export HEKATON_TLS_CA={ca}", markup=False, soft_wrap=True)
    if not names:
        console.print(f"  hekaton models add NAME DIRECTORY{address}")
    console.print(f"  hekaton generate {model} 'The capital of France is'{address}", markup=False)
    console.print(f"  hekaton pool --watch{address}")
    if stack.http_address:
        key = "api_key as above" if options.auth else "any api_key"
        scheme = "https" if options.tls_dir else "http"
        console.print(f"\nFor clients of the OpenAI API: base_url {scheme}://{stack.http_address}/v1, {key}")
    console.print("Ctrl-C stops it.")
