"""KV that leaves the device for the host, under the turn loop."""

import pytest

from fakes.turnloop import GB, LoopDriver, expected, spec, submit
from hekaton.engine.messages import Cancel
from hekaton.facts import Slo

FAT = spec(kv_bytes_per_token=10_000_000)
"""On 11 GB there is room for 96 tokens of KV beside it, six blocks of 160 MB."""
BLOCK_BYTES = 160_000_000


def squeezed(host_kv_memory_bytes: int, device_memory_bytes: int = 11 * GB) -> LoopDriver:
    """Three requests that do not fit together; `slack` has the most, and `oldest` was there first."""
    driver = LoopDriver(device_memory_bytes, host_kv_memory_bytes=host_kv_memory_bytes)
    driver.add("a", model_spec=FAT)
    driver.send(submit("oldest", "a", prompt=30, max_tokens=34, age_s=5.0, slo=Slo(60.0, 1.0)))
    driver.send(submit("slack", "a", prompt=10, max_tokens=40, slo=Slo(50.0, 1.0)))
    driver.send(submit("urgent", "a", prompt=10, max_tokens=40, age_s=1.0))
    return driver


def test_kv_that_was_squeezed_out_comes_back_instead_of_being_computed_again() -> None:
    driver = squeezed(10 * GB)
    driver.run()
    for request_id, count in (("oldest", 34), ("slack", 40), ("urgent", 40)):
        assert driver.tokens(request_id) == expected(request_id, "a", count)
    assert "slack" in driver.engine.swapped
    assert driver.engine.recomputed == []
    assert driver.engine.host_kv_bytes() == driver.engine.kv_bytes() == 0


def test_a_model_that_returns_brings_its_kv_along() -> None:
    """Weights and KV of either model take all of the device."""
    driver = LoopDriver(11 * GB, host_kv_memory_bytes=10 * GB)
    driver.add("a", "b", model_spec=spec(kv_bytes_per_token=1_100_000))
    for model in "ab":
        driver.send(*(submit(f"{model}{n}", model, prompt=20, max_tokens=400) for n in range(2)))
    driver.run()
    for request_id in ("a0", "a1", "b0", "b1"):
        assert driver.tokens(request_id) == expected(request_id, request_id[0], 400)
    assert {"a0", "a1", "b0", "b1"} & set(driver.engine.swapped)
    assert driver.engine.recomputed == []


@pytest.mark.parametrize("blocks", [1, 2])
def test_when_the_host_is_full_somebody_is_computed_again_but_never_the_oldest(blocks: int) -> None:
    driver = squeezed(blocks * BLOCK_BYTES)
    driver.run()
    for request_id, count in (("oldest", 34), ("slack", 40), ("urgent", 40)):
        assert driver.tokens(request_id) == expected(request_id, "a", count)
    assert driver.engine.recomputed
    assert "oldest" not in driver.engine.recomputed


def test_on_a_full_host_those_with_more_slack_make_place_and_the_oldest_never_does() -> None:
    driver = squeezed(3 * BLOCK_BYTES, 16 * GB)
    driver.run(lambda: len(driver.tokens("oldest")) == 10)
    live, memory, now_s = driver.loop._desk.live, driver.loop._memory, driver.clock.now_s
    slack, urgent, oldest = live["slack"], live["urgent"], live["oldest"]
    assert oldest.due_s() > slack.due_s() > urgent.due_s()
    for request in (slack, urgent, oldest):
        memory.drop_kv(request, now_s)
    assert (slack.host_tokens, urgent.host_tokens, oldest.host_tokens) == (0, 0, 39)
    memory.drop_kv(slack, now_s)
    assert oldest.host_tokens == 39
    driver.run()
    assert driver.tokens("oldest") == expected("oldest", "a", 34)
    assert "oldest" not in driver.engine.recomputed


def test_waiting_for_kv_is_no_spinning() -> None:
    driver = LoopDriver(host_kv_memory_bytes=10 * GB)
    driver.add("a", model_spec=FAT)
    driver.send(submit("r", "a", prompt=20, max_tokens=60))
    driver.run(lambda: len(driver.tokens("r")) == 10)
    driver.loop._memory.drop_kv(driver.loop._desk.live["r"], driver.clock.now_s)
    passes, calls, began_s = 0, driver.policy.calls, driver.clock.now_s
    while len(driver.tokens("r")) == 10:
        assert driver.pass_once()
        passes += 1
    assert driver.clock.now_s - began_s > 2 * 2 * BLOCK_BYTES / 16e9, "out, then in"
    assert passes < 6
    assert driver.policy.calls - calls <= 3


def test_others_step_while_a_requests_kv_is_on_its_way() -> None:
    driver = LoopDriver(host_kv_memory_bytes=10 * GB)
    driver.add("a", model_spec=FAT)
    driver.send(submit("away", "a", prompt=200, max_tokens=60), submit("here", "a", prompt=20, max_tokens=60))
    driver.run(lambda: len(driver.tokens("away")) == 10)
    driver.loop._memory.drop_kv(driver.loop._desk.live["away"], driver.clock.now_s)
    before = len(driver.tokens("here"))
    driver.run(lambda: len(driver.tokens("away")) == 11)
    assert len(driver.tokens("here")) > before + 5
    driver.run()
    assert driver.engine.recomputed == []


@pytest.mark.parametrize("fetching", [False, True])
def test_cancelling_frees_the_kv_on_the_host(fetching: bool) -> None:
    driver = LoopDriver(host_kv_memory_bytes=10 * GB)
    driver.add("a", model_spec=FAT)
    driver.send(submit("r", "a", prompt=20, max_tokens=60))
    driver.run(lambda: len(driver.tokens("r")) == 10)
    driver.loop._memory.drop_kv(driver.loop._desk.live["r"], driver.clock.now_s)
    assert driver.engine.host_kv_bytes() == 2 * BLOCK_BYTES
    if fetching:
        driver.run(lambda: driver.loop._desk.live["r"].fetching)
    driver.send(Cancel("r", 1))
    driver.run()
    assert driver.ended("r").cancelled
    assert driver.engine.host_kv_bytes() == driver.engine.kv_bytes() == 0
