"""Messages that no client should send, to every RPC of a real pool: `python -m bench.fuzz [--messages N] [--seed N]`.

Malformed bytes, texts that are no UTF-8, fields of other types, all members of a oneof, extreme numbers and sizes, and
well-typed nonsense go to the router's port and to those of scheduler, worker and memory. No call may end INTERNAL,
UNKNOWN or by a lost connection, no service may die or log what nobody foresaw, and after each round a sound request is
answered and the pool comes to rest with no more memory, descriptors, tasks and lasting keys than before. Exit status 0
says so.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.fuzz.calls import SERVICES
from bench.fuzz.run import SHOWN, Options, Report, fuzz
from bench.machine import cpu_name


def _show(report: Report, console: Console) -> None:
    table = Table("RPC", "calls", "ended", title=f"{report.messages} messages, seed {report.seed}, {report.device}")
    for rpc, codes in report.codes.items():
        ended = ", ".join(f"{code} {calls}" for code, calls in sorted(codes.items(), key=lambda item: -item[1]))
        table.add_row(rpc, str(sum(codes.values())), ended)
    console.print(table)
    for name, growth in report.growth.items():
        if name in report.grown:
            console.print(f"{name} has grown: {growth.first:,.0f} → {growth.last:,.0f}", markup=False)
    for fault in report.faults[:SHOWN]:
        console.print(fault, markup=False)
    verdict = "it held" if report.held else f"{len(report.faults)} faults, {len(report.grown)} figures have grown"
    console.print(f"{report.calls} calls in {report.duration_s:.0f} s on {cpu_name()}: {verdict}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, with a tiny real model, or emulated:NAME")
    parser.add_argument("--concurrency", type=int, default=32, help="calls at the same time")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bound", type=float, default=0.02, help="the most that anything may grow, 0.02 is 2 %%")
    parser.add_argument("--service", default="", choices=("", *SERVICES), help="only this one")
    parser.add_argument("--log-dir", type=Path, help="keep the services' logs there")
    args = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    options = Options(
        args.messages, args.seed, args.device, args.concurrency, args.rounds, args.bound, args.service, args.log_dir
    )
    report = asyncio.run(fuzz(options, lambda text: print(text, file=sys.stderr, flush=True)))
    if args.json:
        print(json.dumps({"cpu": cpu_name(), **report.as_json()}, indent=2))
    else:
        _show(report, console)
    if not report.held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
