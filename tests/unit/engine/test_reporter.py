"""What the turn loop's statuses tell."""

from fakes.turnloop import LoopDriver, submit
from hekaton.engine.messages import Status


def test_costs_are_told_when_a_model_is_new_on_the_device_and_not_again() -> None:
    driver = LoopDriver()
    driver.add("a", "b")
    driver.send(submit("r1", "a"), submit("r2", "b", prompt=50))
    driver.run()
    told = [status.costs for status in driver.of(Status) if status.costs]
    assert sorted(model for costs in told for model in costs) == ["a", "b"]
    assert all(costs[model] == driver.engine.costs(model) for costs in told for model in costs)
    waiting = [status.prefill_tokens for status in driver.of(Status)]
    assert {"a": 20, "b": 50} in waiting
    assert waiting[-1] == {}
