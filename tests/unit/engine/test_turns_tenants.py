"""Tenants on one worker: who is charged, and who goes first."""

import pytest

from fakes.turnloop import GB, LoopDriver, expected, spec, submit
from hekaton.engine.messages import Ended, Status, Step, Stop, Submit, TurnEnded, Yielding


def by(tenant: str, request_id: str, model: str, *, prompt: int = 20, max_tokens: int = 30) -> Submit:
    one = submit(request_id, model, prompt=prompt, max_tokens=max_tokens)
    return Submit(**{name: getattr(one, name) for name in one.__struct_fields__} | {"tenant": tenant})


def firsts(driver: LoopDriver) -> list[str]:
    """Requests in order of their first tokens."""
    outputs = [output for step in driver.of(Step) for output in step.outputs]
    return list(dict.fromkeys(output.request_id for output in outputs))


def test_a_worker_says_how_long_it_has_worked_for_whom_waiting_for_weights_included() -> None:
    driver = LoopDriver()
    driver.add("a", "b")
    driver.send(
        by("ada", "r1", "a"),
        *(by(name, request_id, "b", prompt=10) for name, request_id in (("bob", "r2"), ("bob", "r3"), ("", "r4"))),
    )
    driver.run()
    driver.send(Stop())
    used_s = {"ada": 0.0, "bob": 0.0}
    for status in driver.of(Status):
        for tenant, seconds in status.used_s.items():
            used_s[tenant] += seconds
    turns = {"a": 0.0, "b": 0.0}
    for ended in driver.of(TurnEnded):
        turns[ended.turn.model] += ended.turn.duration_s
    assert used_s["ada"] == pytest.approx(turns["a"], rel=0.05)
    assert used_s["bob"] == pytest.approx(turns["b"] * 2 / 3, rel=0.05), "a third is of somebody without a name"


def test_the_requests_of_a_tenant_that_yields_wait_for_those_of_others_in_a_batch_and_between_models() -> None:
    driver = LoopDriver(max_batch=2)
    driver.add("a", "b")
    driver.send(Yielding(("ada",)))
    driver.send(*(by("ada", f"ada{index}", "a", max_tokens=200) for index in range(4)))
    driver.run(lambda: "ada1" in firsts(driver))
    driver.send(by("bob", "bob-a", "a"), by("bob", "bob-b", "b"))
    driver.run()
    order = firsts(driver)
    assert order.index("bob-a") < order.index("ada2")
    assert [ended.request_id for ended in driver.of(Ended)][:2] == ["bob-a", "bob-b"], "b ran as soon as it was there"
    assert driver.tokens("ada0") == expected("ada0", "a", 200)


def test_a_tenant_that_yields_no_more_is_as_before() -> None:
    driver = LoopDriver(max_batch=1)
    driver.add("a")
    driver.send(Yielding(("ada",)), by("ada", "first", "a"), Yielding(()))
    driver.send(by("bob", "second", "a"))
    driver.run()
    assert firsts(driver) == ["first", "second"]


def test_kv_of_a_tenant_that_yields_gives_way() -> None:
    """There is room for one long prompt beside the weights; the oldest request, which never gives way, is short."""
    driver = LoopDriver(device_memory_bytes=11 * GB)
    driver.add("a", model_spec=spec())
    driver.send(Yielding(("ada",)), by("ada", "old", "a", prompt=16, max_tokens=200))
    driver.run(lambda: "old" in firsts(driver))
    driver.send(by("ada", "ada", "a", prompt=700))
    driver.run(lambda: "ada" in firsts(driver))
    driver.send(by("bob", "bob", "a", prompt=700))
    driver.run(lambda: "bob" in firsts(driver))
    assert len(driver.tokens("ada")) < 30, "it was taken from in mid-generation"
    driver.run()
    assert driver.tokens("ada") == expected("ada", "a", 30)
    assert driver.engine.recomputed == ["ada"]
