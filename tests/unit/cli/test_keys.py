"""`hekaton keys` against a real Redis."""

import asyncio

from typer.testing import CliRunner

from fakes.redis import redis_server
from hekaton.cli.main import app
from hekaton.facts import Tenant
from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.tenants import Tenants

__all__ = ["redis_server"]


def keys(*arguments: str, url: str) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments, "--redis-url", url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_a_key_is_created_listed_without_its_secret_and_revoked(redis_server: EmbeddedRedis) -> None:
    limits = (
        "--requests-per-minute",
        "5",
        "--tokens-per-minute",
        "600",
        "--concurrent",
        "2",
        "--model",
        "m",
        "--weight",
        "3.5",
    )
    key = keys("create", "ada", *limits, url=redis_server.url)
    _, key_id, secret = key.split("-", 2)

    async def owner() -> Tenant | None:
        async with connect(redis_server.url) as redis:
            return await Tenants(redis).owner(key)

    assert asyncio.run(owner()) == Tenant("ada", False, ("m",), 5, 600, 2, 3.5)
    listed = keys("list", url=redis_server.url)
    assert [fact for fact in (key_id, "ada", "m", "5", "600", "2", "3.5") if fact not in listed] == []
    assert secret not in listed
    assert keys("revoke", key_id, url=redis_server.url) == f"{key_id} is revoked"
    assert asyncio.run(owner()) is None


def test_a_key_that_is_not_there_cannot_be_revoked(redis_server: EmbeddedRedis) -> None:
    result = CliRunner().invoke(app, ["keys", "revoke", "nobody", "--redis-url", redis_server.url])
    assert result.exit_code == 1
    assert "hekaton keys list" in result.output
