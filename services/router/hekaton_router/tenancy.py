"""Who calls, what he may do, and what he has left."""

from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Literal, Self

import structlog

from hekaton.errors import InvalidArgument, PermissionDenied, RequestNotFound, Unauthenticated
from hekaton.facts import RequestRecord, Tenant
from hekaton.store.tenants import Spending, Tenants
from hekaton_router.chores import Chores
from hekaton_router.live import LiveRequest

log = structlog.get_logger(__name__)
ANYBODY = Tenant(admin=True)
"""Without keys: whoever reaches the router may do everything."""
CATALOG = ("RegisterModel", "UpdateModel", "DeleteModel", "SetAlias", "DeleteAlias", "PreloadModel")
REPOSITORY = ("RepositoryModelLoad", "RepositoryModelUnload")
ADMINISTRATIVE = (*CATALOG, *REPOSITORY, "GetPool", "WatchPool")
BEARER = "bearer "
_current: ContextVar[Tenant] = ContextVar("tenant", default=ANYBODY)


def current() -> Tenant:
    """Who makes the call that this task serves."""
    return _current.get()


def check_model(model: str, target: str = "") -> None:
    """Raises PermissionDenied for a model that the caller may not use, whether it exists or not.

    Who may use an alias, or the model that it points at (`target`), may use both.
    """
    tenant = current()
    if not tenant.may_use(model) and not (target and tenant.may_use(target)):
        raise PermissionDenied(f"tenant {tenant.name} may not use model {model[:128]}: ask for it, or use another")


def check_owner(request_id: str, owner: str) -> None:
    """Raises RequestNotFound for another tenant's request: he does not learn that there is one."""
    tenant = current()
    if tenant.name and owner != tenant.name:
        raise RequestNotFound(f"no request has the id {request_id}")


class Guard:
    """Asks every call for its key."""

    def __init__(self, mode: Literal["off", "keys"], tenants: Tenants) -> None:
        self._open = mode == "off"
        self._tenants = tenants

    async def admit(self, method: str, headers: Mapping[str, str]) -> None:
        """Makes the caller the task's current tenant. Raises Unauthenticated, PermissionDenied, StoreUnavailable."""
        if self._open:
            return
        authorization = headers.get("authorization", "")
        if authorization[: len(BEARER)].lower() != BEARER:
            raise Unauthenticated("an API key is needed: send it as authorization: Bearer KEY")
        tenant = await self._tenants.owner(authorization[len(BEARER) :].strip())
        if tenant is None:
            raise Unauthenticated("this API key is not known, or was revoked")
        if method.rsplit("/", 1)[-1] in ADMINISTRATIVE:
            if not tenant.admin:
                raise PermissionDenied(f"tenant {tenant.name} is no administrator of this pool")
            log.info("administrative call", tenant=tenant.name, method=method)
        _current.set(tenant)


class Quotas:
    """Charges requests to their tenants before they are accepted, and settles when they have ended."""

    def __init__(self, spending: Spending, chores: Chores) -> None:
        self._spending = spending
        self._chores = chores

    async def charge(self, record: RequestRecord) -> "Charge":
        """Raises QuotaExceeded, StoreUnavailable, or InvalidArgument for what no minute has room for."""
        tenant, tokens = current(), record.prompt_tokens + record.sampling.max_tokens
        if not tenant.limited:
            return Charge(record, None)
        if 0 < tenant.tokens_per_minute < tokens:
            raise InvalidArgument(
                f"prompt and max_tokens are {tokens} tokens, tenant {tenant.name} may use {tenant.tokens_per_minute} "
                "a minute: shorten the prompt or lower max_tokens"
            )
        minute = await self._spending.charge(tenant, record.request_id, tokens, record.deadline_s)
        return Charge(record, partial(self._settle, tenant.name, minute))

    def _settle(self, tenant: str, minute: int, request_id: str, unused_tokens: int) -> None:
        self._chores.add(partial(self._spending.settle, tenant, request_id, minute, unused_tokens))


class Charge:
    """Of one request, until the end of the block."""

    def __init__(self, record: RequestRecord, settle: partial[None] | None) -> None:
        self.live: LiveRequest | None = None
        self._record = record
        self._settle = settle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settle:
            produced = len(self.live.token_ids) if self.live else 0
            self._settle(self._record.request_id, self._record.sampling.max_tokens - produced)
