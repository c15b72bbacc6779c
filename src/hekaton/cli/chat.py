"""`hekaton chat`: a conversation."""

from contextlib import aclosing
from typing import Annotated

import typer
from rich.markup import escape

from hekaton.cli.common import DEFAULT_ADDRESS, Address, console, run
from hekaton.cli.generate import MaxTokens, MinP, RepetitionPenalty, Seed, Stop, Temperature, TopK, TopP
from hekaton.client import Client, Message, SamplingOptions, Tokens


def chat(
    model: Annotated[str, typer.Argument(help="A registered model; see `hekaton models list`.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Talk with a model. An empty line, Ctrl-D or Ctrl-C ends it."""
    options = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
    )
    messages: list[Message] = []
    while text := _ask():
        messages.append(Message("user", text))
        messages.append(Message("assistant", run(_answer(address, model, messages, options))))


def _ask() -> str:
    try:
        return console.input("[bold]you>[/bold] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""


async def _answer(address: str, model: str, messages: list[Message], options: SamplingOptions) -> str:
    text = ""
    console.print(f"[bold]{escape(model)}>[/bold] ", end="")
    async with Client(address) as client, aclosing(client.generate(model, messages, options)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                console.out(event.text, end="")
                text += event.text
    console.print()
    return text
