"""`hekaton chaos` in short: everything breaks but the contract. The long runs are `make chaos`."""

import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fakes.commands import HEKATON, environment, hekaton
from hekaton.chaos.faults import LONGEST_S, MIXED, SCENARIOS, SHORTEST_S, Drawer, Fault, Kind, possible
from hekaton.chaos.load import Case, End, Outcome
from hekaton.chaos.report import Report, report
from hekaton.cli.common import TERMINATED


@pytest.mark.timeout(600)
def test_the_contract_holds_while_everything_breaks() -> None:
    options = (
        "--requests",
        "40",
        "--seed",
        "5",
        "--device",
        "emulated:h800",
        "--interval",
        "0.5",
        "1",
        "--longest",
        "1",
    )
    done = hekaton("chaos", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["requests"], found["lost"], found["wrong_tokens"], found["duplicated_tokens"]) == (40, 0, 0, 0)
    assert found["terminal"] == found["accepted"] > 0
    assert sum(found["faults"].values()) >= 1


@pytest.mark.timeout(600)
def test_a_terminated_run_ends_cleanly_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory(prefix="hk-") as temporary:
        command = [*HEKATON, "chaos", "--device", "emulated:h800", "--interval", "0.5", "1", "--requests", "100000"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment(TMPDIR=temporary), stderr=pipe, text=True) as process:
            assert process.stderr is not None
            said = [next(line for line in process.stderr if "requests done" in line)]
            process.terminate()
            said += process.stderr
            assert (process.wait(), "Traceback" in "".join(said)) == (TERMINATED, False)
        assert not list(Path(temporary).iterdir())


def test_every_kind_of_fault_is_drawn_as_often_as_the_others_and_within_its_bounds() -> None:
    drawer = Drawer(Random(1), possible(MIXED, emulated=False), 2, 20.0)
    drawn = [fault for _ in range(120) if (fault := drawer.draw(()))]
    assert Counter(fault.kind for fault in drawn) == dict.fromkeys(Kind, 20)
    killed = Counter(fault.label for fault in drawn if fault.kind is Kind.KILL)
    assert killed == dict.fromkeys(("kill worker", "kill scheduler", "kill router", "kill memory"), 5)
    assert {fault.target for fault in drawn if fault.kind is Kind.RESTART} == {"redis"}
    for fault in drawn:
        most_s = LONGEST_S.get(fault.kind, 0.0)
        assert fault.duration_s == 0.0 if not most_s else SHORTEST_S <= fault.duration_s <= most_s
    assert all(service != "memory" for _, service in possible(MIXED, emulated=True))
    assert set(SCENARIOS) == {"worker", "scheduler", "router", "memory", "redis", "network"}


def test_what_is_broken_is_not_drawn() -> None:
    drawer = Drawer(Random(1), possible("worker", emulated=False), 2, 20.0)
    assert {fault.target for _ in range(20) if (fault := drawer.draw({"worker-0"}))} == {"worker-1"}
    assert drawer.draw({"worker-0", "worker-1"}) is None


KILLED = Fault(Kind.KILL, "worker-0", 0.0)


def reported(*outcomes: Outcome, wrong: dict[str, int] | None = None) -> Report:
    return report(outcomes, [(1.0, KILLED)], wrong or {}, scenario="x", seed=1, device="cpu", duration_s=1.0, ties=0)


def outcome(end: End, reason: str = "", *arrivals_s: float) -> Outcome:
    return Outcome(Case("r", "m", (1,), 4, None), end, reason, accepted=True, arrivals_s=list(arrivals_s) or [0.0])


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (reported(outcome(End.FINISHED)), True),
        (reported(outcome(End.FAILED, "WORKER_LOST")), True),
        (reported(outcome(End.FAILED, "INTERNAL")), False),
        (reported(outcome(End.LOST)), False),
        (reported(outcome(End.FINISHED), wrong={"r": 3}), False),
    ],
)
def test_what_breaks_the_contract(found: Report, held: bool) -> None:
    assert found.held is held


def test_a_recovery_is_the_time_from_a_fault_to_the_next_token() -> None:
    found = reported(outcome(End.FINISHED, "", 0.0, 0.9, 3.0, 3.1), outcome(End.FINISHED, "", 0.8, 1.1))
    assert (found.interrupted, found.recovery_p50_s) == (1, 2.0)


def test_a_fault_counts_as_in_flight_if_a_request_was() -> None:
    assert reported(outcome(End.FINISHED, "", 0.9, 1.1)).kinds_in_flight == {"kill": 1}
    found = reported(outcome(End.FINISHED, "", 0.0, 0.9), outcome(End.FINISHED, "", 1.1, 1.2))
    assert (found.kinds, found.kinds_in_flight) == ({"kill": 1}, {})
