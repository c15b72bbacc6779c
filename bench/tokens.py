"""What a token costs the router: `python -m bench.tokens [--json] [--streams N] [--rate R] [--seconds S] [--rounds N]`.

A worker sends the next token of every stream at each step, through a real router with SmolLM2's tokenizer, to clients
in a process of their own: one message a token and client. Alternately, a bare grpc.aio relay passes as many streams of
such messages on as bytes. `router_over_relay` is CPU a token of the router's process ÷ that of the relay's, medians;
`http_over_grpc` that of the same streams over the OpenAI-compatible API, as server-sent events, ÷ over the native one.
Every stream's text is compared with the decoding of its ids as a whole.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import grpc.aio
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench.control import clients, http_clients, relay
from bench.control.machine import cpu_s
from bench.control.processes import peer
from bench.control.services import add_models, address_of, embedded_redis, free_port, service
from bench.control.tokenizer import SPEC, read_tokenizer, tokenizer_service
from bench.control.workers import LightWorker, light_workers
from bench.machine import cpu_name
from hekaton.store.keys import Kind
from hekaton.v1 import common_pb2, inference_pb2
from hekaton.v1 import worker_pb2 as pb

MODEL = "smollm2"
TEXT = Path(__file__).parent.parent / "LICENSE"
"""Its tokens are what the streams carry, over and over."""
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    streams: int
    rate: float
    """Steps a second."""
    seconds: float

    @property
    def warm_up_steps(self) -> int:
        return round(WARM_UP_S * self.rate)

    @property
    def steps(self) -> int:
        return self.warm_up_steps + round(self.seconds * self.rate)


@dataclass(frozen=True, slots=True)
class Cost:
    cpu_us_a_token: float
    tokens_per_s: float
    """As sent."""
    messages_a_token: float
    """1 unless what is measured fell behind and put several tokens into one message."""


@dataclass(frozen=True, slots=True)
class Result:
    """Medians."""

    streams: int
    tokens_per_s: float
    router_us_a_token: float
    relay_us_a_token: float
    pairs_us_a_token: float
    """Of a relay with an upstream of its own for each client."""
    router_over_relay: float
    http_us_a_token: float
    http_over_grpc: float
    router_tokens_per_s_and_core: float
    messages_a_token: float


async def paced(load: Load, pid: int, step: Callable[[int], None]) -> tuple[float, float]:
    """Takes every step at its time; CPU seconds of a process and seconds after the warm-up."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    before_s = since_s = 0.0
    for index in range(load.steps):
        if index == load.warm_up_steps:
            before_s, since_s = cpu_s(pid), loop.time()
        step(index)
        await asyncio.sleep(max(start_s + (index + 1) / load.rate - loop.time(), 0.0))
    return cpu_s(pid) - before_s, loop.time() - since_s


def cost(load: Load, cpu_time_s: float, time_s: float, messages: int) -> Cost:
    tokens = load.streams * (load.steps - load.warm_up_steps)
    return Cost(1e6 * cpu_time_s / tokens, tokens / time_s, messages / (load.streams * load.steps))


async def relayed(load: Load, *, fan_out: bool) -> Cost:
    source = relay.Source()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((relay.handler(source.stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    message = inference_pb2.GenerateResponse(
        tokens=inference_pb2.Tokens(first_index=100, token_ids=[10_000], text=" relayed")
    ).SerializeToString()
    async with peer(relay.run, f"127.0.0.1:{port}", load.streams, fan_out) as middle:
        address = await middle.said()
        async with peer(clients.run, address, relay.METHOD, [b"?"] * load.streams) as readers:
            await readers.until(lambda: source.streams == (1 if fan_out else load.streams))
            took = await paced(load, middle.pid, lambda index: source.send(message))
            source.send(None)
            streams = await readers.said()
    await server.stop(0)
    return cost(load, *took, sum(map(len, streams)))


@dataclass(frozen=True, slots=True)
class Pool:
    """A router with one worker."""

    router: str
    http_port: int
    router_pid: int
    worker: LightWorker
    tokenizer: Tokenizer

    def request(self, load: Load) -> tuple[list[int], bytes]:
        """Ids of the text, and a request for as many tokens as there are steps."""
        ids = self.tokenizer.encode(TEXT.read_text()).ids
        request = inference_pb2.GenerateRequest(
            model=MODEL, sampling=common_pb2.Sampling(max_tokens=load.steps, temperature=0.0, ignore_eos=True)
        )
        request.token_ids.ids.extend(ids[:20])
        return ids, request.SerializeToString()

    async def served(self, load: Load) -> Cost:
        ids, request = self.request(load)
        requests = [request] * load.streams
        async with peer(clients.run, self.router, clients.GENERATE, requests) as readers:
            await readers.until(lambda: len(self.worker.following) == load.streams)
            took = await paced(
                load, self.router_pid, lambda index: self.worker.step(lambda place: ids[place % len(ids)])
            )
            await self.worker.finish()
            streams = await readers.said()
        return cost(load, *took, sum(self._checked(stream, load.steps) for stream in streams))

    async def served_http(self, load: Load) -> Cost:
        """The same streams over HTTP."""
        ids, _ = self.request(load)
        body = {
            "model": MODEL, "prompt": ids[:20], "stream": True, "temperature": 0, "max_tokens": load.steps,
            "ignore_eos": True,
        }  # fmt: skip
        bodies = [json.dumps(body).encode()] * load.streams
        async with peer(http_clients.run, "127.0.0.1", self.http_port, "/v1/completions", bodies) as readers:
            await readers.until(lambda: len(self.worker.following) == load.streams)
            took = await paced(
                load, self.router_pid, lambda index: self.worker.step(lambda place: ids[place % len(ids)])
            )
            await self.worker.finish()
            streams = await readers.said()
        texts = [[event["choices"][0]["text"] for event in stream] for stream in streams]
        expected = self.tokenizer.decode([ids[place % len(ids)] for place in range(load.steps)])
        if any("".join(text) != expected for text in texts):
            raise RuntimeError("a stream brought a text that is not that of its tokens")
        return cost(load, *took, sum(map(len, texts)))

    def _checked(self, stream: list[bytes], tokens: int) -> int:
        """How many messages brought tokens. Raises RuntimeError if tokens or text are not what they should be."""
        ids: list[int] = []
        text = ""
        messages = 0
        for message in stream:
            response = inference_pb2.GenerateResponse.FromString(message)
            if response.HasField("tokens"):
                messages += 1
                ids += response.tokens.token_ids
                text += response.tokens.text
        if len(ids) != tokens or text != self.tokenizer.decode(ids):
            raise RuntimeError(f"a stream of {tokens} tokens brought {len(ids)}, or a text that is not theirs")
        return messages


@asynccontextmanager
async def pool(folder: Path) -> AsyncIterator[Pool]:
    tokenizer_json = await read_tokenizer()
    async with AsyncExitStack() as stack:
        redis, url = await stack.enter_async_context(embedded_redis())
        group = await stack.enter_async_context(asyncio.TaskGroup())
        await add_models(redis, SPEC, [MODEL])
        await stack.enter_async_context(tokenizer_service(redis, tokenizer_json))

        def assigned(worker: LightWorker, assign: pb.Assign) -> None:
            group.create_task(worker.hold(assign))

        workers = await stack.enter_async_context(light_workers(redis, 1, assigned))
        scheduler = await stack.enter_async_context(service("scheduler", url, folder))
        http_port = free_port()
        flags = ("--drain-timeout-s=0.5", f"--http-listen=127.0.0.1:{http_port}")
        router = await stack.enter_async_context(service("router", url, folder, *flags))
        await address_of(redis, Kind.SCHEDULER, scheduler)
        address = await address_of(redis, Kind.ROUTER, router)
        yield Pool(address, http_port, router.pid or 0, workers[0], Tokenizer.from_str(tokenizer_json.decode()))


async def measure(load: Load, rounds: int, folder: Path) -> Result:
    async with pool(folder) as router:
        kinds: list[Callable[[Load], Awaitable[Cost]]] = [
            router.served,
            router.served_http,
            partial(relayed, fan_out=True),
            partial(relayed, fan_out=False),
        ]
        costs: list[list[Cost]] = [[] for _ in kinds]
        for round_ in range(rounds):
            order = range(len(kinds))
            for index in order if round_ % 2 else reversed(order):
                costs[index].append(await kinds[index](load))
    ours, http, bare, pairs = (median(one.cpu_us_a_token for one in kind) for kind in costs)
    return Result(
        streams=load.streams,
        tokens_per_s=median(one.tokens_per_s for one in costs[0]),
        router_us_a_token=ours,
        relay_us_a_token=bare,
        pairs_us_a_token=pairs,
        router_over_relay=ours / bare,
        http_us_a_token=http,
        http_over_grpc=http / ours,
        router_tokens_per_s_and_core=1e6 / ours,
        messages_a_token=median(one.messages_a_token for one in costs[0]),
    )


def _table(result: Result) -> Table:
    table = Table(title=f"A token through the router ({os.cpu_count()} cores of {cpu_name()})", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row(f"tokens a second in {result.streams} streams", f"{result.tokens_per_s:.0f}")
    table.add_row("router, CPU a token", f"{result.router_us_a_token:.1f} µs")
    table.add_row("relay", f"{result.relay_us_a_token:.1f} µs")
    table.add_row("relay with an upstream for each client", f"{result.pairs_us_a_token:.1f} µs")
    table.add_row("router ÷ relay", f"{result.router_over_relay:.2f}")
    table.add_row("router over HTTP", f"{result.http_us_a_token:.1f} µs")
    table.add_row("HTTP ÷ gRPC", f"{result.http_over_grpc:.2f}")
    table.add_row("tokens a second and core", f"{result.router_tokens_per_s_and_core:.0f}")
    table.add_row("messages a token", f"{result.messages_a_token:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tokens", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=float, default=100.0, help="tokens a second and stream")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Load(args.streams, args.rate, args.seconds), args.rounds, Path(folder)))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), **asdict(result)}))
    else:
        Console().print(_table(result))


if __name__ == "__main__":
    main()
