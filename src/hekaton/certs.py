"""Certificates of a pool's own authority, for one host or a few; larger ones have tools for theirs.

Everything is in one directory: `ca.pem` and `ca.key`, and what they were used for last, `cert.pem` and `key.pem`.
"""

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hekaton.errors import InvalidArgument
from hekaton.rpc.tls import CertificateFiles

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
CLOCK_SKEW = timedelta(minutes=5)


def issue(directory: Path, names: Sequence[str] = (), *, valid: timedelta = timedelta(days=CERTIFICATE_DAYS)) -> None:
    """A new certificate and key for these names and addresses, in place of those before; an authority if there is none.

    Raises InvalidArgument for an authority that cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = CertificateFiles.of(directory)
    ca_key_file = directory / "ca.key"
    if not (files.ca.exists() and ca_key_file.exists()):
        _make_authority(files.ca, ca_key_file)
    authority, authority_key = _authority(files.ca, ca_key_file)
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = [_general_name(name) for name in names or LOCAL_NAMES]
    certificate = (
        _builder("hekaton", authority.subject, key.public_key(), valid)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(files.key, _private_pem(key))
    _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM))


def _make_authority(ca: Path, ca_key: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("hekaton pool")
    certificate = (
        _builder("hekaton pool", name, key.public_key(), timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_authority_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(ca_key, _private_pem(key))
    _write(ca, certificate.public_bytes(serialization.Encoding.PEM))


def _authority(ca: Path, ca_key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(ca.read_bytes())
        key = serialization.load_pem_private_key(ca_key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{ca} and {ca_key} are no authority: {error}; remove both to have a new one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise InvalidArgument(f"{ca_key} is not the key of {ca}: remove both to have a new authority")
    return certificate, key


def _builder(
    subject: str, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, valid: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + valid) - CLOCK_SKEW)
        .not_valid_after(now + valid)
    )


def _authority_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, readable to its owner only."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)
