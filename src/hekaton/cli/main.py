"""The `hekaton` command."""

import typer

from hekaton import __version__
from hekaton.cli import bench, chaos, chat, demo, generate, health, keys, models, plan, pool, sim, up
from hekaton.cli.common import console

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
) -> None:
    pass


app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("up", rich_help_panel="Start here")(up.up)
app.command("generate", rich_help_panel="Use a pool")(generate.generate)
app.command("chat", rich_help_panel="Use a pool")(chat.chat)
app.add_typer(models.app, name="models", rich_help_panel="Use a pool")
app.add_typer(keys.app, name="keys", rich_help_panel="Use a pool")
app.command("pool", rich_help_panel="Watch a pool")(pool.pool)
app.command("health", rich_help_panel="Watch a pool")(health.health)
app.add_typer(bench.app, name="bench", rich_help_panel="Watch a pool")
app.command("chaos", rich_help_panel="Break a pool")(chaos.chaos)
app.command("plan", rich_help_panel="Plan a pool")(plan.plan)
app.add_typer(sim.app, name="sim", rich_help_panel="Plan a pool")

if __name__ == "__main__":
    app()
