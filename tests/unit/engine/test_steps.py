"""Steps on workers of one role, in the turn loop."""

from fakes.turnloop import LoopDriver, expected, submit
from hekaton.facts import FinishReason
from hekaton.policy.live import live_turns
from hekaton.policy.types import Role


def test_a_prefill_worker_hands_a_request_over_after_its_next_token() -> None:
    driver = LoopDriver(policy=live_turns("aegaeon", {}, Role.PREFILL), role=Role.PREFILL)
    driver.add("a")
    driver.send(
        submit("r", "a", prompt=100), submit("later", "a", produced=(1, 2, 3)), submit("one", "a", max_tokens=1)
    )
    driver.run()
    assert driver.tokens("r") == expected("r", "a", 1)
    assert (driver.ended("r").handed_over, driver.ended("r").finish) == (True, None)
    assert (driver.ended("later").handed_over, driver.ended("later").completion_tokens) == (True, 4)
    assert (driver.ended("one").handed_over, driver.ended("one").finish) == (False, FinishReason.LENGTH)
    assert driver.engine.kv_bytes() == 0
