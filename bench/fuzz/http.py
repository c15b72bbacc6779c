"""The HTTP API against its own document: `python -m bench.fuzz.http [--examples N] [--seed N] [--phases NAMES]`.

schemathesis reads `/openapi.json` of a real router and sends what the document allows and what it forbids: each field
at its bounds (`coverage`), and N random requests of each route (`fuzzing`). No answer may be one of a broken server,
have a status, a type or a shape that the document does not name, or accept what it forbids. The document may allow
more than is accepted: what depends on the model, or on two fields at once. Exit status 0 says so, and that the router
has logged nothing that nobody foresaw and answers a sound request after it.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.fuzz import hooks
from bench.fuzz.target import TOKENS, said_wrong
from hekaton.chaos.run import EMULATED, EMULATED_CLASS
from hekaton.cli.supervisor import ANY_PORT, Stack, StackOptions
from hekaton.client import Client, SamplingOptions

CONFIG = f"""
hooks = "{hooks.__file__}"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
[checks.positive_data_acceptance]
enabled = false
"""


@dataclass(frozen=True, slots=True)
class Options:
    examples: int
    seed: int
    phases: str


async def fuzz(options: Options) -> list[str]:
    """What went wrong; schemathesis prints its own findings."""
    async with AsyncExitStack() as exit_stack:
        folder = Path(exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="hekaton-fuzz-")))
        logs = folder / "logs"
        # So fast that nobody waits for an answer.
        pool = StackOptions(
            device="emulated:h800", device_memory="40GB", time_scale=1e-3, http_listen=ANY_PORT, log_dir=logs
        )
        stack = await exit_stack.enter_async_context(Stack(pool, print))
        client = await exit_stack.enter_async_context(Client(stack.address))
        await client.register_model(hooks.MODEL, EMULATED + EMULATED_CLASS)
        faults = [] if await _schemathesis(stack.http_address, options, folder) == 0 else ["see above"]
        answer = await client.complete(
            hooks.MODEL, "Are you there?", SamplingOptions(max_tokens=TOKENS, ignore_eos=True)
        )
        if len(answer.token_ids) != TOKENS:
            faults.append(f"a sound request got {len(answer.token_ids)} of {TOKENS} tokens")
        return faults + said_wrong(logs)


async def _schemathesis(address: str, options: Options, folder: Path) -> int:
    """Its exit status."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"),
        *(f"http://{address}/openapi.json", "--max-examples", str(options.examples), "--seed", str(options.seed)),
        *("--phases", options.phases, "--warnings", "off"),
        cwd=folder, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz.http", description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="random requests of each route")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default="coverage,fuzzing")
    args = parser.parse_args()
    faults = asyncio.run(fuzz(Options(args.examples, args.seed, args.phases)))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
