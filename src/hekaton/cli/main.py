"""The `hekaton` command."""

import os
from typing import Annotated

import typer

from hekaton import __version__
from hekaton.cli import bench, certs, chaos, chat, demo, generate, health, keys, models, plan, pool, sim, soak, up
from hekaton.cli.common import console
from hekaton.config import ENV_PREFIX

TlsCa = Annotated[
    str | None,
    typer.Option(envvar=f"{ENV_PREFIX}TLS_CA", help="Talk TLS; trust this authority, a PEM file, or: public."),
]
TlsCert = Annotated[
    str | None, typer.Option(envvar=f"{ENV_PREFIX}TLS_CERT", help="PEM file of a certificate for who asks for one.")
]
TlsKey = Annotated[str | None, typer.Option(envvar=f"{ENV_PREFIX}TLS_KEY", help="PEM file of its private key.")]

app = typer.Typer(
    name="hekaton",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Serve many language models from few accelerators.\n\n"
    "A worker leaves a model in the middle of its generations, keeps the KV cache, serves another model, "
    "and comes back in time for every reader.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"hekaton {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    # Clients and services that the command starts find it where their users put it as well.
    for name, value in (("CA", tls_ca), ("CERT", tls_cert), ("KEY", tls_key)):
        if value is not None:
            os.environ[f"{ENV_PREFIX}TLS_{name}"] = value


app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("up", rich_help_panel="Start here")(up.up)
app.command("generate", rich_help_panel="Use a pool")(generate.generate)
app.command("chat", rich_help_panel="Use a pool")(chat.chat)
app.add_typer(models.app, name="models", rich_help_panel="Use a pool")
app.command("certs", rich_help_panel="Use a pool")(certs.certs)
app.add_typer(keys.app, name="keys", rich_help_panel="Use a pool")
app.command("pool", rich_help_panel="Watch a pool")(pool.pool)
app.command("health", rich_help_panel="Watch a pool")(health.health)
app.add_typer(bench.app, name="bench", rich_help_panel="Watch a pool")
app.command("chaos", rich_help_panel="Break a pool")(chaos.chaos)
app.command("soak", rich_help_panel="Break a pool")(soak.soak)
app.command("plan", rich_help_panel="Plan a pool")(plan.plan)
app.add_typer(sim.app, name="sim", rich_help_panel="Plan a pool")

if __name__ == "__main__":
    app()
