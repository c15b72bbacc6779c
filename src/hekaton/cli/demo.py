"""`hekaton demo`: several real models take turns on a device too small for them, and every answer is verified."""

import asyncio
import json
import time
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hekaton.cli import demo_models
from hekaton.cli.common import byte_size, check_device, console, fail, readable, run, warn
from hekaton.cli.demo_report import Outcome, as_json, left_in_mid_generation, report
from hekaton.cli.demo_verify import Verdict, verify
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client, Finished, Message, SamplingOptions, Tokens
from hekaton.facts import Slo, TurnRecord

SLO = Slo(ttft_s=20.0, tbt_s=1.0)
"""What a CPU can keep while it serves four models in turns."""
PROMPTS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
    "What do bees make?",
    "How many legs has a spider?",
    "Give me a word that rhymes with cat.",
    "What is water made of?",
    "Who wrote Romeo and Juliet?",
    "What is the opposite of hot?",
    "Explain gravity to a child.",
    "Name a planet with rings.",
)
LAST_TURN_S = 1.0
"""How long to wait for the record of the last turn."""


def demo(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    device_memory: Annotated[str, typer.Option(help="Too small for two of the models in float32.")] = "700MiB",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    max_tokens: Annotated[int, typer.Option(min=2, help="Of each answer, at most.")] = 40,
    models_dir: Annotated[Path | None, typer.Option(help="Where the demo's models are, or will be.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Serve four models from a device that holds one and a bit, and verify every token."""
    check_device(device)
    byte_size(device_memory, "--device-memory")
    if json_file is not None and not json_file.parent.is_dir():
        raise typer.BadParameter(f"{json_file.parent} is not a directory: make it first", param_hint="--json")
    outcomes, turns = run(_serve(device, device_memory, dtype, max_tokens, models_dir))
    console.print(report(outcomes, turns, SLO, device))
    console.print("\nverifying each answer against an uninterrupted run of transformers …")
    verdicts = run(verify(outcomes, models_dir or demo_models.default_directory(), dtype))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(outcomes, turns, verdicts, SLO, device), indent=2) + "\n")
    _conclude(outcomes, turns, verdicts)


def _conclude(outcomes: list[Outcome], turns: list[TurnRecord], verdicts: list[Verdict]) -> None:
    """Exit status 0 only if all is as promised."""
    verified = sum(verdict.equal for verdict in verdicts)
    ties = sum(verdict.ties for verdict in verdicts)
    note = f" ({ties} ties)" if ties else ""
    console.print(f"[bold]verified: {verified}/{len(outcomes)}[/bold]{note}")
    never_left = sorted({outcome.model for outcome in outcomes} - left_in_mid_generation(turns))
    if never_left:
        fail(f"never left in mid-generation: {', '.join(never_left)}")
    if verified < len(outcomes):
        wrong = [f"{verdict.id} at token {verdict.first_difference}" for verdict in verdicts if not verdict.equal]
        fail(f"answers differ from the reference: {', '.join(wrong)}")


async def _serve(
    device: str, device_memory: str, dtype: str, max_tokens: int, models_dir: Path | None
) -> tuple[list[Outcome], list[TurnRecord]]:
    paths = await demo_models.prepare(models_dir or demo_models.default_directory())
    console.print(f"starting a pool of one worker: {device}, {device_memory}")
    options = StackOptions(device=device, device_memory=device_memory)
    async with (
        Stack(options, warn) as stack,
        Client(stack.address) as client,
    ):
        for path in paths:
            with console.status(f"preparing {path.name} in {dtype}"):
                model = await client.register_model(path.name, str(path), dtype=dtype, slo=SLO)
            weights = readable(model.spec.weight_bytes) if model.spec else ""
            console.print(f"registered {path.name}: {weights} of weights")
        outcomes = [
            Outcome(f"r{index:02d}", paths[index % len(paths)].name, prompt) for index, prompt in enumerate(PROMPTS)
        ]
        return outcomes, await _ask_all(client, outcomes, max_tokens)


async def _ask_all(client: Client, outcomes: list[Outcome], max_tokens: int) -> list[TurnRecord]:
    """All prompts at once. Returns the worker's turns."""
    console.print(f"sending {len(outcomes)} prompts to {len({one.model for one in outcomes})} models at once\n")
    turns: list[TurnRecord] = []
    watching = asyncio.Event()
    watch = asyncio.create_task(_watch(client, turns, watching), name="watch turns")
    await watching.wait()
    try:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            async with asyncio.TaskGroup() as group:
                for outcome in outcomes:
                    group.create_task(_ask(client, outcome, max_tokens, live, outcomes))
        await asyncio.sleep(LAST_TURN_S)
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    return turns


async def _watch(client: Client, turns: list[TurnRecord], watching: asyncio.Event) -> None:
    async with aclosing(client.watch_pool()) as events:
        async for event in events:
            watching.set()
            if isinstance(event, TurnRecord):
                turns.append(event)


async def _ask(client: Client, outcome: Outcome, max_tokens: int, live: Live, outcomes: list[Outcome]) -> None:
    chat = [Message("user", outcome.prompt)]
    outcome.prompt_ids = await client.tokenize(outcome.model, chat)
    outcome.sent_s = time.monotonic()
    options = SamplingOptions(max_tokens=max_tokens, temperature=0.0)
    async with aclosing(client.generate(outcome.model, chat, options, request_id=outcome.id)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                outcome.took(event, time.monotonic())
                live.update(_side_by_side(outcomes))
            elif isinstance(event, Finished):
                outcome.stats = event.stats
    if not console.is_terminal:
        console.print(f"  {outcome.id} {outcome.model}: {outcome.excerpt()}", markup=False)


def _side_by_side(outcomes: list[Outcome]) -> Table:
    table = Table("model", "prompt", "answer so far", "tokens", expand=True)
    for outcome in sorted(outcomes, key=lambda one: one.model):
        table.add_row(outcome.model, outcome.prompt, Text(outcome.excerpt()), str(len(outcome.token_ids)))
    return table
