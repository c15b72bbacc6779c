"""The demo's figures, on records made by hand."""

import json

import pytest
from rich.console import Console

from hekaton.cli.demo_report import (
    Outcome,
    as_json,
    left_in_mid_generation,
    mean_exposed_switch_s,
    report,
    token_attainment,
)
from hekaton.cli.demo_verify import Verdict
from hekaton.client import Tokens
from hekaton.facts import RequestStats, Slo, TurnRecord

SLO = Slo(ttft_s=1.0, tbt_s=0.5)


def outcome(id: str, model: str, *times_s: float, text: str = "word ") -> Outcome:
    """Sent at 10 s; a token at each of the times."""
    one = Outcome(id, model, "why?", sent_s=10.0, stats=RequestStats(3, len(times_s), 2, 1, 0, "worker-0"))
    for index, time_s in enumerate(times_s):
        one.took(Tokens(index, (index,), text), time_s)
    return one


def turn(model: str, start_s: float, duration_s: float, *left: str, switch_s: float = 0.0) -> TurnRecord:
    return TurnRecord(0, "worker-0", model, start_s, duration_s, switch_s, switch_s > 0, 100, 4, 4, left)


def rendered(outcomes: list[Outcome], turns: list[TurnRecord]) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(report(outcomes, turns, SLO, "cpu"))
    return captured.get()


def test_attainment_counts_every_token_against_its_own_due_time() -> None:
    punctual = outcome("r0", "a", 11.0, 11.5, 12.0)
    stalled = outcome("r1", "a", 10.2, 11.6, 11.9)
    assert (punctual.on_time(SLO), stalled.on_time(SLO)) == (3, 2)
    assert token_attainment([punctual, stalled], SLO) == pytest.approx(5 / 6)
    assert token_attainment([], SLO) == 0.0


def test_times_are_those_of_the_reader() -> None:
    one = outcome("r0", "a", 10.5, 11.0, 12.5)
    assert (one.ttft_s, one.mean_tbt_s, one.preemptions) == (0.5, 1.0, 2)
    assert outcome("r1", "a").ttft_s == float("inf")
    assert outcome("r2", "a", 10.5).mean_tbt_s == 0.0


def test_a_model_was_left_in_mid_generation_if_a_turn_preempted_a_request() -> None:
    turns = [turn("a", 0, 1, "r0"), turn("b", 1, 1), turn("a", 2, 1), turn("c", 3, 1, "r1", "r2")]
    assert left_in_mid_generation(turns) == {"a", "c"}


def test_only_turns_that_switched_count_for_the_mean_switch() -> None:
    turns = [turn("a", 0, 1, switch_s=0.1), turn("a", 1, 1), turn("b", 2, 1, switch_s=0.3)]
    assert mean_exposed_switch_s(turns) == pytest.approx(0.2)
    assert mean_exposed_switch_s([]) == 0.0


def test_the_timeline_shows_who_ran_when() -> None:
    turns = [turn("long", 5, 2), turn("b", 7, 1), turn("long", 8, 1)]
    lines = rendered([outcome("r0", "long", 10.5)], turns).splitlines()
    first = lines.index("turns of the worker over 4.0 s (cpu)")
    assert lines[first + 1].rstrip() == f"   b {'·' * 27}{'█' * 13}{'·' * 14} 1×"
    assert lines[first + 2].rstrip() == f"long {'█' * 27}{'·' * 13}{'█' * 14} 2×"


def test_a_turn_too_short_for_the_timeline_still_shows() -> None:
    text = rendered([outcome("r0", "a", 10.5)], [turn("a", 0, 100), turn("b", 100, 0.001)])
    assert any(line.lstrip().startswith("b ") and "█" in line for line in text.splitlines())


def test_the_report_shows_answers_as_they_are_and_names_the_device() -> None:
    text = rendered([outcome("r0", "a", 10.5, 11.0, text="[/b] :smile: ")], [])
    assert "[/b] :smile: [/b] :smile:" in text
    assert "no turns were recorded" in text
    assert "token attainment: 100.0% (first token within 1 s, then one every 0.5 s; cpu)" in text


def test_the_json_holds_every_figure() -> None:
    outcomes = [outcome("r0", "a", 10.5, 11.0)]
    turns = [turn("a", 0, 1, "r0", switch_s=0.1)]
    found = as_json(outcomes, turns, [Verdict("r0", True, 1, None)], SLO, "cpu")
    assert json.loads(json.dumps(found)) == {
        "device": "cpu",
        "token_attainment": 1.0,
        "switches": 1,
        "mean_exposed_switch_s": 0.1,
        "verified": 1,
        "ties": 1,
        "left_in_mid_generation": ["a"],
        "requests": [
            {
                "id": "r0",
                "model": "a",
                "text": "word word ",
                "tokens": 2,
                "ttft_s": 0.5,
                "mean_tbt_s": 0.5,
                "preemptions": 2,
            }
        ],
        "turns": [
            {
                "model": "a",
                "start_s": 0,
                "duration_s": 1,
                "exposed_switch_s": 0.1,
                "tokens": 4,
                "left_unfinished": ["r0"],
            }
        ],
    }
