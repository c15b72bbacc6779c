"""Certificates, made for each test."""

import shutil
from datetime import timedelta
from pathlib import Path

from hekaton.certs import issue
from hekaton.config import SchedulerSettings
from hekaton.rpc.tls import CertificateFiles, ClientTls

EXPIRED = timedelta(days=-1)


def certificates(directory: Path, *names: str, valid: timedelta = timedelta(days=1)) -> CertificateFiles:
    """A new certificate of the directory's authority."""
    issue(directory, names, valid=valid)
    return CertificateFiles.of(directory)


def pool_settings(files: CertificateFiles, **more: object) -> SchedulerSettings:
    """Of a service that talks to those only that have a certificate of this authority."""
    tls = {"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key}
    return SchedulerSettings.model_validate({"redis_url": "redis://unused", "drain_timeout_s": 0.2, **tls, **more})


def member(files: CertificateFiles, name: str = "") -> ClientTls:
    return ClientTls(files.ca, files.cert, files.key, name=name)


def replace(old: CertificateFiles, new: CertificateFiles) -> None:
    """A renewal as operators do it: each file over the one before."""
    for source, target in ((new.ca, old.ca), (new.cert, old.cert), (new.key, old.key)):
        shutil.copyfile(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
