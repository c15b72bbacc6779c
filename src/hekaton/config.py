"""Settings of the four services.

Each is read from flags, then HEKATON_* environment variables, then a TOML file (HEKATON_CONFIG_FILE: common settings at
its top, a service's own in a table of its name), then the defaults here. An unknown name or a bad value ends the
process at start with a message that names it.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

from pydantic import ByteSize, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from hekaton.errors import InvalidArgument
from hekaton.policy.admission import Admission
from hekaton.policy.live import live_policy, live_turns
from hekaton.policy.types import Role
from hekaton.rpc.tls import ClientTls, ServerTls

ENV_PREFIX = "HEKATON_"
CONFIG_FILE_VARIABLE = "HEKATON_CONFIG_FILE"
ADDRESS_VARIABLE = "HEKATON_ADDRESS"
"""Where the commands of the CLI find the router."""
API_KEY_VARIABLE = "HEKATON_API_KEY"
"""What they show it."""
PUBLIC_CA = "public"
"""As HEKATON_TLS_CA of a client: the authorities that the world trusts."""


class Settings(BaseSettings):
    """Settings that every service has."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, cli_kebab_case=True)
    service: ClassVar[str] = ""

    redis_url: str = Field(description="Redis of this pool: redis://HOST:PORT/0, rediss://… or unix://PATH")
    listen: str = Field("127.0.0.1:0", description="address to serve on; port 0 takes a free one")
    advertise: str = Field("", description="address that others reach this service at; the one listened on if empty")
    metrics_listen: str = Field("", description="address of /metrics for Prometheus, e.g. 127.0.0.1:9100; off if empty")
    insecure_listen: bool = Field(False, description="allow to listen beyond loopback without TLS")
    tls_cert: Path | None = Field(None, description="this service's certificate within the pool, PEM, chain included")
    tls_key: Path | None = Field(None, description="its private key, PEM")
    tls_ca: Path | None = Field(
        None, description="the pool's own authority, PEM: services talk to those only that show its certificates"
    )
    tls_name: str = Field("", description="name in the pool's certificates, where they do not bear services' addresses")
    reflection: bool = Field(True, description="answer gRPC server reflection")
    drain_timeout_s: float = Field(30.0, ge=0, description="how long a stopping service lets its calls finish")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str = Field("", description="OTLP gRPC endpoint for traces, e.g. http://jaeger:4317; off if empty")
    heartbeat_s: float = Field(1.0, gt=0, description="how often a service says in Redis that it lives")
    lease_s: float = Field(5.0, gt=0, description="how long a service that says nothing is believed to live")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        _together(tls_cert=self.tls_cert, tls_key=self.tls_key, tls_ca=self.tls_ca)
        return self

    @cached_property
    def peer_tls(self) -> ServerTls | None:
        """Of listeners for the pool's own services, which show a certificate; None: plain.

        This and the others raise InvalidArgument for files that cannot be used.
        """
        return ServerTls(self.tls_cert, self.tls_key, self.tls_ca) if self.tls_cert and self.tls_key else None

    @cached_property
    def client_tls(self) -> ClientTls | None:
        """Of channels to the pool's own services."""
        return ClientTls(self.tls_ca, self.tls_cert, self.tls_key, name=self.tls_name) if self.tls_ca else None

    @property
    def listen_tls(self) -> ServerTls | None:
        """Of `listen`."""
        return self.peer_tls

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _FileSource(settings_cls)


class RouterSettings(Settings):
    """router: the public APIs."""

    service = "router"

    router_id: str = Field("", description="name of this router; drawn if empty")
    default_max_tokens: int = Field(256, ge=1)
    default_deadline_s: float = Field(600.0, gt=0, description="for calls that bring none")
    max_deadline_s: float = Field(3600.0, gt=0)
    default_ttft_s: float = Field(10.0, gt=0, description="objective of models registered without one")
    default_tbt_s: float = Field(0.1, gt=0)
    max_queued_requests: int = Field(10_000, ge=1, description="accepted and not yet placed, over all routers")
    max_resume_window_s: float = Field(600.0, gt=0, description="how long a request may go on without its client")
    redis_wait_s: float = Field(15.0, ge=0, description="how long new requests wait for a Redis that is away")
    http_listen: str = Field("", description="address of the OpenAI-compatible API, e.g. 127.0.0.1:8000; off if empty")
    public_tls_cert: Path | None = Field(None, description="certificate for clients, PEM; that of the pool if unset")
    public_tls_key: Path | None = Field(None, description="its private key, PEM")
    public_tls_client_ca: Path | None = Field(
        None, description="authority, PEM, of which every client must show a certificate; never the pool's own"
    )
    auth: Literal["off", "keys"] = Field("off", description="keys: every call needs an API key of `hekaton keys`")
    max_message_bytes: ByteSize = Field(ByteSize(4 << 20), description="largest request message")
    tokenizer_timeout_s: float = Field(10.0, gt=0, description="bound on one tokenisation")
    admission: Admission = Field(
        Admission.QUEUE, description="of a request whose TTFT the pool cannot keep: queue, or shed, which refuses it"
    )

    @model_validator(mode="after")
    def _public_tls_is_whole(self) -> Self:
        _together(public_tls_cert=self.public_tls_cert, public_tls_key=self.public_tls_key)
        if self.public_tls_client_ca and not (self.public_tls_cert or self.tls_cert):
            raise ValueError("public_tls_client_ca needs public_tls_cert and public_tls_key too")
        return self

    @cached_property
    def public_tls(self) -> ServerTls | None:
        cert, key = self.public_tls_cert or self.tls_cert, self.public_tls_key or self.tls_key
        return ServerTls(cert, key, self.public_tls_client_ca) if cert and key else None

    @property
    def listen_tls(self) -> ServerTls | None:
        return self.public_tls


class PolicySettings(Settings):
    """Settings of the services that carry out a policy: the same for all of a pool."""

    policy: str = Field("slack", description="who runs and where: slack, aegaeon, request-level, multiplex, dedicated")
    policy_option: dict[str, float] = Field(
        {}, description="of the policy: NAME=NUMBER, e.g. min_turn_s=0.3; repeatable"
    )

    def model_post_init(self, context: object) -> None:
        """Raises InvalidArgument if there is no such policy, or if it cannot run live."""
        live_policy(self.policy, self.policy_option)


class SchedulerSettings(PolicySettings):
    """scheduler: places requests on workers; one leads, others stand by."""

    service = "scheduler"

    scheduler_id: str = Field("", description="name of this scheduler; drawn if empty")
    leader_lease_s: float = Field(1.5, gt=0, description="a leader that does not renew for so long is replaced")
    admission: Admission = Field(Admission.QUEUE, description="shed: tell routers what the pool can promise")
    max_placed_requests: int = Field(1024, ge=1, description="on one worker and not ended; others wait")
    max_attempts: int = Field(3, ge=1, description="workers that a request may lose before it fails")


class WorkerSettings(PolicySettings):
    """worker: one accelerator."""

    service = "worker"

    worker_id: str = Field("", description="name of this worker; drawn if empty")
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?|emulated:[a-z0-9]+)$", description="cpu, cuda[:N], emulated:NAME"
    )
    device_memory: ByteSize = Field(description="bytes of the device for weights and KV, e.g. 700MiB")
    host_kv_memory: ByteSize | None = Field(
        None, description="host memory for KV off the device; half of device_memory if unset, 0: compute it again"
    )
    host_kv_dir: Path = Field(Path("/dev/shm"), description="where that memory is taken; a tmpfs")
    copy_bandwidth: ByteSize = Field(
        ByteSize(0), description="most bytes a second of copies to and from the device, to emulate a bus; 0: no limit"
    )
    hung_step_s: float = Field(120.0, gt=0, description="a step that takes longer is given up, and its engine ended")
    threads: int = Field(1, ge=1, description="torch threads; more than one only if one worker owns the machine")
    memory_address: str = Field("", description="this host's memory service; not needed by emulated devices")
    role: Role = Field(Role.ANY, description="phase of requests that it serves; policy aegaeon needs prefill or decode")
    max_batch: int = Field(64, ge=1, description="most requests in one step")
    prefill_chunk_tokens: int = Field(512, ge=16, description="most prompt tokens in one step")
    time_scale: float = Field(1.0, gt=0, description="emulated devices: seconds of the clock per second of the profile")

    @property
    def host_kv_memory_bytes(self) -> int:
        return int(self.device_memory // 2 if self.host_kv_memory is None else self.host_kv_memory)

    def model_post_init(self, context: object) -> None:
        live_turns(self.policy, self.policy_option, self.role)


class MemorySettings(Settings):
    """memory: this host's weight cache, and KV that changes workers."""

    service = "memory"

    memory_id: str = Field("", description="name of this memory service; drawn if empty")
    segment_dir: Path = Field(
        Path("/dev/shm/hekaton"), description="where weight images live; a tmpfs, shared with the workers"
    )
    host_memory: ByteSize = Field(ByteSize(8 << 30), description="budget for weight images")
    parcel_memory: ByteSize = Field(ByteSize(2 << 30), description="budget for KV on its way between workers")
    parcel_lifetime_s: float = Field(30.0, gt=0, description="KV that no worker takes within it is computed again")
    builders: int = Field(1, ge=1, description="checkpoints that are read at the same time")


SERVICES: tuple[type[Settings], ...] = (RouterSettings, SchedulerSettings, WorkerSettings, MemorySettings)
S = TypeVar("S", bound=Settings)


def load(cls: type[S], argv: list[str] | None = None) -> S:
    """The settings of a service's process. Exits with status 2 and one clear message if they are not sound."""
    try:
        check_environment(os.environ)
        args = sys.argv[1:] if argv is None else argv
        flags: dict[str, Any] = {"_cli_parse_args": args, "_cli_prog_name": f"hekaton_{cls.service}"}
        return cls(**flags)
    except ValidationError as error:
        _fail(cls, (_explain(cls, dict(item)) for item in error.errors()))
    except (SettingsError, InvalidArgument, ValueError, OSError) as error:
        _fail(cls, (str(error),))


def check_environment(environment: Iterable[str]) -> None:
    """Raises ValueError for a HEKATON_* variable that no service knows."""
    known = {ENV_PREFIX + name.upper() for cls in SERVICES for name in cls.model_fields}
    known |= {CONFIG_FILE_VARIABLE, ADDRESS_VARIABLE, API_KEY_VARIABLE}
    for name in environment:
        if name.startswith(ENV_PREFIX) and name not in known:
            raise ValueError(f"unknown setting {name}{_suggest(name, known)}")


def tls_of(environment: Mapping[str, str]) -> ClientTls | None:
    """How a client talks: HEKATON_TLS_CA, and a certificate and key if the router asks for them; None: plain.

    Raises InvalidArgument for files that cannot be used.
    """
    ca, cert, key, name = (environment.get(f"{ENV_PREFIX}TLS_{part}", "") for part in ("CA", "CERT", "KEY", "NAME"))
    if not ca:
        return None
    trusted = None if ca == PUBLIC_CA else Path(ca)
    return ClientTls(trusted, Path(cert) if cert else None, Path(key) if key else None, name=name)


class _FileSource(PydanticBaseSettingsSource):
    """The TOML file that HEKATON_CONFIG_FILE names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise KeyError(field_name)

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get(CONFIG_FILE_VARIABLE)
        if not path:
            return {}
        try:
            document = tomllib.loads(Path(path).read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        tables = {cls.service: set(cls.model_fields) for cls in SERVICES}
        for name, value in document.items():
            known = tables.get(name, set(Settings.model_fields) | set(tables))
            names = value if isinstance(value, dict) and name in tables else [name]
            for key in names:
                if key not in known:
                    raise ValueError(f"{path}: unknown setting {key}{_suggest(key, known)}")
        own: dict[str, Any] = document.get(str(getattr(self.settings_cls, "service", "")), {})
        return {key: value for key, value in document.items() if key not in tables} | own


def _together(**settings: Path | None) -> None:
    missing = [name for name, value in settings.items() if value is None]
    if missing and len(missing) < len(settings):
        raise ValueError(f"{', '.join(settings)} go together: set {' and '.join(missing)} too")


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(cls: type[Settings], error: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "settings"
    hint = (
        f" (flag --{name.replace('_', '-')} or variable {ENV_PREFIX}{name.upper()})" if name in cls.model_fields else ""
    )
    return f"{name}: {error['msg']}{hint}"


def _fail(cls: type[Settings], messages: Iterable[str]) -> NoReturn:
    for message in messages:
        print(f"hekaton_{cls.service}: {message}", file=sys.stderr)
    raise SystemExit(2)
