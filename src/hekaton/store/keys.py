"""Every key of the store.

One hash tag per shard, so that a shard's scripts run on one node of a cluster; a schema version, so that a newer
layout never reads an older one.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a registry holds."""

    WORKER = "worker"
    MEMORY = "memory"
    ROUTER = "router"
    HTTP = "http"
    """Routers too: where their HTTP API is."""
    SCHEDULER = "scheduler"


@dataclass(frozen=True, slots=True)
class Keys:
    shard: str = "0"

    @property
    def prefix(self) -> str:
        return f"hekaton:v1:{{{self.shard}}}:"

    @property
    def queue(self) -> str:
        """Stream: one entry per QUEUED request."""
        return self.prefix + "queue"

    @property
    def term(self) -> str:
        """String: the last leadership term. Never expires."""
        return self.prefix + "term"

    @property
    def leader(self) -> str:
        """String with a TTL: who leads."""
        return self.prefix + "leader"

    @property
    def outlooks(self) -> str:
        """String with a TTL: JSON, model name → what the leader can promise to its new requests."""
        return self.prefix + "outlooks"

    @property
    def catalog(self) -> str:
        """Hash: model name → JSON of its CatalogEntry."""
        return self.prefix + "catalog"

    @property
    def catalog_version(self) -> str:
        """Number: grows with every model that is registered."""
        return self.prefix + "catalog_version"

    def profiles(self, digest: str) -> str:
        """Hash: kind of device → JSON of what a model costs there. Expires long after the last measurement."""
        return f"{self.prefix}profiles:{digest}"

    @property
    def aliases(self) -> str:
        """Hash: alias → model name."""
        return self.prefix + "aliases"

    @property
    def tenants(self) -> str:
        """Hash: tenant → JSON of it."""
        return self.prefix + "tenants"

    @property
    def api_keys(self) -> str:
        """Hash: id of a key → JSON of what is known of it, its hash among it."""
        return self.prefix + "api_keys"

    def spent(self, tenant: str) -> str:
        """Hash: the minute, and what a tenant has used in it."""
        return f"{self.prefix}spent:{tenant}"

    def active(self, tenant: str) -> str:
        """Sorted set: a tenant's requests, by when they end at the latest."""
        return f"{self.prefix}active:{tenant}"

    @property
    def cancelled_prefix(self) -> str:
        return self.prefix + "cancelled:"

    def cancelled(self, router_id: str) -> str:
        """Channel: ids of a router's requests, as anybody cancels them."""
        return self.cancelled_prefix + router_id

    @property
    def held_prefix(self) -> str:
        return self.prefix + "held:"

    def held(self, worker_id: str) -> str:
        """Hash: request id → epoch, of what is PLACED or RUNNING on a worker."""
        return self.held_prefix + worker_id

    def request(self, request_id: str) -> str:
        """Hash: record, prompt, progress and state of a request. Expires after the terminal event."""
        return f"{self.prefix}request:{request_id}"

    def members(self, kind: Kind) -> str:
        """Set: ids that may be alive."""
        return f"{self.prefix}{kind}:members"

    def member_prefix(self, kind: Kind) -> str:
        return f"{self.prefix}{kind}:info:"

    def member(self, kind: Kind, member_id: str) -> str:
        """String with a TTL: what a live member says of itself."""
        return self.member_prefix(kind) + member_id

    def incarnation(self, kind: Kind, member_id: str) -> str:
        """String: the newest incarnation of an id, kept long after its death."""
        return f"{self.prefix}{kind}:incarnation:{member_id}"


SHARD_0 = Keys()
