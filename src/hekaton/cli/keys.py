"""`hekaton keys`: who may use a pool whose routers run with --auth keys."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.table import Table

from hekaton.cli.common import console, fail, run
from hekaton.facts import Tenant
from hekaton.store.connect import connect
from hekaton.store.tenants import KEY_ID_CHARS, StoredKey, Tenants

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
T = TypeVar("T")
Redis = Annotated[str, typer.Option("--redis-url", envvar="HEKATON_REDIS_URL", help="The pool's Redis.")]
Limit = Annotated[int, typer.Option(min=0, help="Of the tenant; 0: no limit.")]


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is. His limits become those given here.")],
    redis_url: Redis,
    models: Annotated[list[str] | None, typer.Option("--model", help="The only models he may use. Repeatable.")] = None,
    requests_per_minute: Limit = 0,
    tokens_per_minute: Limit = 0,
    concurrent: Limit = 0,
    weight: Annotated[
        float, typer.Option(min=0.001, max=1000, help="His share of the accelerators where there are too few.")
    ] = 1.0,
    admin: Annotated[bool, typer.Option("--admin", help="May change the catalog and watch the pool.")] = False,
) -> None:
    """Create a key and print it; it cannot be shown again."""
    wanted = Tenant(tenant, admin, tuple(models or ()), requests_per_minute, tokens_per_minute, concurrent, weight)

    async def work(tenants: Tenants) -> str:
        await tenants.put(wanted)
        return await tenants.create_key(tenant)

    console.print(_with(redis_url, work), soft_wrap=True, markup=False)


@app.command("list")
def list_keys(redis_url: Redis) -> None:
    """List keys by their ids, with what their tenants may do."""

    async def work(tenants: Tenants) -> list[tuple[StoredKey, Tenant | None]]:
        return [(key, await tenants.get(key.tenant)) for key in await tenants.keys()]

    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("key", "tenant", "created", "admin", "models", "requests/min", "tokens/min", "concurrent", "weight"):
        # An id is for copying: whole, whatever the terminal's width.
        table.add_column(column, no_wrap=column == "key", min_width=KEY_ID_CHARS if column == "key" else None)
    for key, tenant in _with(redis_url, work):
        created = datetime.fromtimestamp(key.created, UTC).isoformat(" ", "minutes")
        table.add_row(key.key_id, key.tenant, created, *(_facts(tenant) if tenant else ()))
    console.print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As listed.")], redis_url: Redis) -> None:
    """Refuse a key from its next call on."""
    if not _with(redis_url, lambda tenants: tenants.revoke(key_id)):
        fail(f"there is no key {key_id}: see hekaton keys list")
    console.print(f"{key_id} is revoked", markup=False)


def _facts(tenant: Tenant) -> tuple[str, ...]:
    limits = (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent)
    told = (str(limit or "") for limit in limits)
    return "yes" if tenant.admin else "", ", ".join(tenant.models) or "all", *told, f"{tenant.weight:g}"


def _with(redis_url: str, work: Callable[[Tenants], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with connect(redis_url) as redis:
            return await work(Tenants(redis))

    return run(connected())
