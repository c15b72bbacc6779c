"""`hekaton certs`: certificates of a pool's own authority."""

from pathlib import Path
from typing import Annotated

import typer

from hekaton.cli.common import console, fail
from hekaton.errors import InvalidArgument
from hekaton.rpc.tls import CertificateFiles


def certs(
    directory: Annotated[Path, typer.Argument(help="Where ca.pem, cert.pem and key.pem are.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Hosts and addresses; localhost, 127.0.0.1 and ::1 if none is given."),
    ] = None,
) -> None:
    """Issue a certificate in DIRECTORY, of an authority that is made there the first time.

    Issued again it takes the place of the one before, and running services take it up by themselves.
    """
    # Slow to import, and every command would pay.
    from hekaton.certs import issue

    try:
        issue(directory, names or ())
    except (InvalidArgument, OSError) as error:
        fail(str(error))
    files = CertificateFiles.of(directory)
    for setting, path in (("tls-ca", files.ca), ("tls-cert", files.cert), ("tls-key", files.key)):
        console.print(f"--{setting} {path}", markup=False, soft_wrap=True)
