"""`hekaton soak` in short: what a pool holds at rest. The long run is `make soak`."""

import json

import pytest

from fakes.commands import hekaton
from hekaton.chaos.growth import Growth, growths
from hekaton.chaos.load import End
from hekaton.chaos.soak import SoakReport, too_much


@pytest.mark.timeout(600)
def test_a_pool_at_rest_holds_what_it_held_before() -> None:
    """In so short a time memory still grows: it may by as much again."""
    options = ("--duration", "1", "--round", "1", "--warm-up", "0", "--concurrency", "8", "--bound", "1")
    done = hekaton("soak", *options, "--device", "emulated:h800", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert (found["held"], found["grown"], "lost" in found["ends"]) == (True, [], False)
    assert found["ends"]["finished"] > 0
    for name in ("keys", "router tasks", "scheduler rss_bytes", "worker descriptors"):
        assert found["growth"][name]["first"] > 0, name


def test_growth_is_the_last_third_against_the_first() -> None:
    seen = [{"keys": float(value), "gone": 1.0} for value in (10, 90, 10, 11, 12, 12, 13, 13)] + [{"keys": 13.0}]
    assert growths(seen) == {"keys": Growth(10.0, 13.0)}
    assert growths(seen[:1]) == {}
    assert round(Growth(10.0, 13.0).ratio, 3) == 0.3


def test_what_varies_by_nature_may_do_so() -> None:
    assert not too_much("router descriptors", Growth(20, 22), 0.02)
    assert too_much("router descriptors", Growth(20, 23), 0.02)
    assert too_much("keys", Growth(6, 7), 0.02)
    assert not too_much("worker rss_bytes", Growth(200 << 20, 203 << 20), 0.02)
    assert too_much("worker rss_bytes", Growth(200 << 20, 206 << 20), 0.02)


def test_a_soak_that_lost_failed_or_finished_nothing_did_not_hold() -> None:
    def held(**ends: int) -> bool:
        return SoakReport("cpu", 1, 1.0, 1, 1, ends, {}, ()).held

    assert held(finished=5, cancelled=1)
    assert not any((held(), held(finished=1, **{End.LOST: 1}), held(finished=1, **{End.FAILED: 1})))
