"""`hekaton generate`: one prompt, streamed."""

import json
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from hekaton.cli.common import DEFAULT_ADDRESS, Address, console, run, stderr
from hekaton.client import Client, Finished, Message, Prompt, SamplingOptions, Tokens
from hekaton.facts import SloClass

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the likeliest tokens that hold this probability.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Keep so many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Keep tokens this part as likely as the likeliest.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Of tokens in prompt and answer; 1 is none.")
]
PresencePenalty = Annotated[float | None, typer.Option("--presence-penalty", help="Of tokens in the answer.")]
FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", help="Of tokens in the answer, as often as they are there.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")]
MinTokens = Annotated[int | None, typer.Option("--min-tokens", min=0, help="No end before so many tokens.")]
Class = Annotated[
    SloClass | None, typer.Option("--class", help="How urgent it is, where the pool cannot serve everybody at once.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", exists=True, dir_okay=False, help="The answer is JSON that this schema describes."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The same seed gives the same tokens.")]


def generate(
    model: Annotated[str, typer.Argument(help="A registered model; see `hekaton models list`.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a chat message.")] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    stop: Stop = None,
    min_tokens: MinTokens = None,
    json_schema: JsonSchema = None,
    slo_class: Class = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Generate text from a prompt. Ctrl-C cancels."""
    options = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(stop or ()),
        min_tokens=min_tokens,
        json_schema=None if json_schema is None else schema_in(json_schema),
    )
    wanted: Prompt = [Message("user", prompt)] if chat else prompt
    finished = run(_generate(address, model, wanted, options, slo_class))
    if finished is not None:
        stats = finished.stats
        stderr.print(
            f"[dim]{stats.completion_tokens} tokens, {finished.reason}, on {stats.worker_id}, "
            f"preempted {stats.preemptions} times[/dim]"
        )


def schema_in(file: Path) -> dict[str, object]:
    """Ends the command if that is no JSON object."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{file} is no JSON: {error}", param_hint="--json-schema") from error
    if not isinstance(schema, dict):
        raise typer.BadParameter(f"{file} holds no JSON object", param_hint="--json-schema")
    return schema


async def _generate(
    address: str, model: str, prompt: Prompt, options: SamplingOptions, slo_class: SloClass | None
) -> Finished | None:
    async with Client(address) as client:
        return await stream(client, model, prompt, options, slo_class)


async def stream(
    client: Client, model: str, prompt: Prompt, options: SamplingOptions, slo_class: SloClass | None = None
) -> Finished | None:
    """Prints a generation as it comes."""
    async with aclosing(client.generate(model, prompt, options, slo=slo_class)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                console.out(event.text, end="")
            elif isinstance(event, Finished):
                console.print()
                return event
    return None
