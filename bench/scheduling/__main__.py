"""What the policies promise, measured in the simulator.

Everything is simulated: `slack` on 16 h800 (`paper`: h100), 16 GB/s from host to device, first token within 10 s and
then one every 0.1 s, unless a part says otherwise. A bound that does not hold ends the command with status 1.
"""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console

from bench.machine import cpu_name
from bench.scheduling import files, loads, speed
from bench.scheduling.checks import Check, table
from bench.scheduling.runs import Bench, parse
from hekaton.cli.sim_options import Jobs, processes, refusals


class Part(StrEnum):
    PAPER = "paper"
    FILES = "files"
    FAIRNESS = "fairness"
    BELIEFS = "beliefs"
    BURSTS = "bursts"
    SPEED = "speed"
    SCALE = "scale"


PARTS: Mapping[Part, Callable[[Bench], Iterator[Check]]] = MappingProxyType(
    {
        Part.PAPER: files.paper,
        Part.FILES: files.every_file,
        Part.FAIRNESS: loads.fairness,
        Part.BELIEFS: loads.beliefs,
        Part.BURSTS: loads.bursts,
        Part.SPEED: speed.speed,
        Part.SCALE: speed.scale,
    }
)


def main(
    parts: Annotated[list[Part], typer.Argument(help="What to measure; `scale` takes minutes.")],
    sustained: Annotated[
        list[str] | None,
        typer.Option(metavar="MODELSxRATE", help="What slack sustains; may be repeated.  [default: 178x0.1, 117x0.5]"),
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals, of what is not a file.")] = 600.0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point, with seeds 0, 1 and so on.")] = 3,
    jobs: Jobs = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
) -> None:
    found: dict[str, list[Check]] = {}
    with refusals(), processes(jobs) as executor:
        known = tuple(parse(text) for text in sustained or ("178x0.1", "117x0.5"))
        bench = Bench(executor, known, duration, tuple(range(seeds)))
        for part in parts:
            found[part] = list(PARTS[part](bench))
            Console().print(table(f"{part} (simulated)", found[part]))
    if json_file:
        facts = {part: [check.facts() for check in checks] for part, checks in found.items()}
        machine = {"cpu": cpu_name(), "python": platform.python_version()}
        json_file.write_text(json.dumps({"machine": machine, "parts": facts}, indent=1) + "\n", encoding="utf-8")
    if not all(check.holds for checks in found.values() for check in checks):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
