"""TLS of servers and channels, from PEM files that may be renewed while a process runs.

A server looks at its files at every handshake, a channel at every call. Files that do not fit together, as in the
middle of a renewal, are left alone: what was read last goes on.
"""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from hekaton.errors import InvalidArgument

if TYPE_CHECKING:
    from cryptography import x509

log = structlog.get_logger(__name__)
Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """What `hekaton certs` keeps in a directory, in PEM."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def of(cls, directory: Path) -> "CertificateFiles":
        return cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold; None for a file that there is not."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


class TlsFiles:
    """A certificate with its key, and the authority whose certificates the other side may show; each may be absent."""

    def __init__(self, cert: Path | None, key: Path | None, ca: Path | None) -> None:
        """Raises InvalidArgument for files that cannot be used."""
        if (cert is None) != (key is None):
            raise InvalidArgument(f"a certificate and its key go together: give {'key' if cert else 'certificate'} too")
        self.cert, self.key, self.ca = cert, key, ca
        self._stamp = self._stamped()
        self._pems = self._read()

    def current(self) -> Pems:
        """Looks whether the files have changed."""
        try:
            if (stamp := self._stamped()) != self._stamp:
                self._pems, self._stamp = self._read(), stamp
                log.info("certificates read again", cert=str(self.cert or ""), ca=str(self.ca or ""))
        except InvalidArgument as error:
            log.warning("changed certificates cannot be used; those before go on", why=error.message)
        return self._pems

    def _stamped(self) -> Stamp:
        return tuple(_stamp(path) for path in (self.cert, self.key, self.ca) if path)

    def _read(self) -> Pems:
        pems = Pems(*(_content(path) if path else None for path in (self.cert, self.key, self.ca)))
        if pems.cert and pems.key:
            _check_pair(pems.cert, pems.key, self.cert, self.key)
        if pems.ca:
            _certificates(pems.ca, self.ca)
        return pems


class ServerTls:
    """Of a listener. With an authority it asks every peer for a certificate of that, and refuses all others."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._files = TlsFiles(cert, key, client_ca)
        self._built: tuple[Pems, ssl.SSLContext] | None = None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._configuration, require_client_authentication=self._files.ca is not None
        )

    def ssl_context(self) -> ssl.SSLContext:
        """For servers that are not gRPC's."""
        context = self._new_context(self._files.current())
        self.follow(context)
        return context

    def follow(self, context: ssl.SSLContext) -> None:
        """Has a context of a server take from now on what the files hold."""
        context.sni_callback = self._renew
        # A resumed session would not be asked for its certificate again.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pems = self._files.current()
        pair = (pems.key or b"", pems.cert or b"")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=pems.ca)

    def _renew(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """Called in every handshake, with a server name or without."""
        connection.context = self._context()

    def _context(self) -> ssl.SSLContext:
        pems = self._files.current()
        if self._built is None:
            self._built = pems, self._new_context(pems)
        elif self._built[0] is not pems:
            # The library reads the files itself: they may be changing again.
            with suppress(OSError):
                self._built = pems, self._new_context(pems)
        return self._built[1]

    def _new_context(self, pems: Pems) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self._files.cert), str(self._files.key))
        if pems.ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=pems.ca.decode())
        return context


class ClientTls:
    """Of a channel: whom it trusts, the public authorities if there is no `ca`, and what it shows if it is asked."""

    def __init__(
        self, ca: Path | None = None, cert: Path | None = None, key: Path | None = None, *, name: str = ""
    ) -> None:
        """`name` is what servers' certificates must bear, where that is not their address."""
        self._files = TlsFiles(cert, key, ca)
        self._name = name

    def current(self) -> Pems:
        """Looks whether the files have changed; the same object as before if they have not."""
        return self._files.current()

    def credentials(self, pems: Pems) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)

    def options(self) -> tuple[tuple[str, str], ...]:
        return (("grpc.ssl_target_name_override", self._name),) if self._name else ()


ADVICE: tuple[tuple[str, str], ...] = (
    (
        "failed to connect.*(Socket closed|reset by peer)",
        "it closed the connection at once: if it serves TLS, give its authority's certificate (tls_ca); "
        "if it asks for a certificate, give one (tls_cert, tls_key)",
    ),
    ("WRONG_VERSION_NUMBER", "it does not serve TLS: ask it without, or give it a certificate"),
    ("certificate has expired", "its certificate has expired: renew it there"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is of an authority that is not trusted: give its authority's (tls_ca)",
    ),
    ("Hostname Verification", "its certificate bears another name: use an address that it bears, or set tls_name"),
)


def explain(details: str, address: str) -> str:
    """What a failed handshake means and what to do; empty if `details` tell of none."""
    return next((f"no connection to {address}: {advice}" for sign, advice in ADVICE if re.search(sign, details)), "")


def is_unix(address: str) -> bool:
    """A socket of this machine: its directory's permissions say who may use it, and it carries no TLS."""
    return address.startswith("unix:")


def _check_pair(cert_pem: bytes, key_pem: bytes, cert: Path | None, key: Path | None) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    leaf = _certificates(cert_pem, cert)[0]
    try:
        private = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{key} is no private key in PEM without a password: {error}") from error
    if private.public_key() != leaf.public_key():
        raise InvalidArgument(f"{key} is not the key of the certificate {cert}: give the pair that was issued together")
    if leaf.not_valid_after_utc < datetime.now(UTC):
        raise InvalidArgument(f"the certificate {cert} expired on {leaf.not_valid_after_utc:%Y-%m-%d}: renew it")


def _certificates(pem: bytes, path: Path | None) -> "list[x509.Certificate]":
    # Slow to import, and of no use to who has no TLS.
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidArgument(f"{path} holds no certificate in PEM: {error}") from error


def _content(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


def _stamp(path: Path) -> tuple[int, int, int]:
    with _readable(path):
        status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidArgument(f"cannot read the certificate or key {path}: {error.strerror}") from error
