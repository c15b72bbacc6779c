"""Whatever competes for the device, every request of the turn loop advances to its end."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.turnloop import GB, LoopDriver, expected, spec, submit
from hekaton.engine.messages import Cancel, Command, Ended
from hekaton.facts import FinishReason, Slo
from hekaton.policy.slack import SlackTurns


def test_when_kv_runs_out_the_slackest_is_computed_again_and_the_oldest_never() -> None:
    driver = LoopDriver(11 * GB)
    driver.add("a", model_spec=spec(kv_bytes_per_token=10_000_000))  # room for 96 tokens, six blocks
    driver.send(submit("oldest", "a", prompt=30, max_tokens=34, age_s=5.0, slo=Slo(60.0, 1.0)))
    driver.send(submit("slack", "a", prompt=10, max_tokens=40, slo=Slo(50.0, 1.0)))
    driver.send(submit("urgent", "a", prompt=10, max_tokens=40, age_s=1.0))
    driver.run()
    for request_id, count in (("oldest", 34), ("slack", 40), ("urgent", 40)):
        assert driver.tokens(request_id) == expected(request_id, "a", count)
    assert "slack" in driver.engine.recomputed
    assert "oldest" not in driver.engine.recomputed
    assert [event.request_id for event in driver.of(Ended)] == ["oldest", "urgent", "slack"]
    assert driver.engine.kv_bytes() == 0


PLANS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(1, 60),  # prompt
        st.integers(1, 200),  # output
        st.floats(0.0, 2.0),  # seconds until the next command
        st.sampled_from(["run", "run", "run", "cancel", "move"]),
        st.sampled_from([Slo(10.0, 0.1), Slo(1.0, 0.02), Slo(30.0, 1.0)]),
    ),
    min_size=1,
    max_size=14,
)


# A KV-bound pool where nobody else can run: the oldest was displaced between its load and its first step, for ever.
STARVED = [
    ("b", 40, 96, 0.3153167571138034, "run", Slo(10.0, 0.1)),
    ("a", 1, 1, 0.0, "run", Slo(10.0, 0.1)),
    ("a", 40, 74, 0.0, "run", Slo(1.0, 0.02)),
    ("a", 40, 96, 0.0, "run", Slo(1.0, 0.02)),
    ("c", 1, 1, 0.0, "run", Slo(10.0, 0.1)),
]


@example(plan=STARVED, memory_gb=13, kv_mb=8, min_turn_s=0.4, host_gb=0)
@example(plan=STARVED, memory_gb=13, kv_mb=8, min_turn_s=0.4, host_gb=20)
@settings(max_examples=150)
@given(
    plan=PLANS,
    memory_gb=st.sampled_from([13, 23, 35]),
    kv_mb=st.sampled_from([1, 8]),
    min_turn_s=st.sampled_from([0.0, 0.4]),
    host_gb=st.sampled_from([0, 1, 20]),
)
def test_every_request_ends_exactly_once_with_the_right_tokens(
    plan: list[tuple[str, int, int, float, str, Slo]], memory_gb: int, kv_mb: int, min_turn_s: float, host_gb: int
) -> None:
    driver = LoopDriver(memory_gb * GB, SlackTurns(min_turn_s), host_kv_memory_bytes=host_gb * GB)
    driver.add(*"abcd", model_spec=spec(kv_bytes_per_token=kv_mb * 1_000_000))
    for number, (model, prompt, output, wait_s, fate, slo) in enumerate(plan):
        name = f"r{number}"
        driver.send(submit(name, model, prompt=prompt, max_tokens=output, slo=slo))
        driver.run_for(wait_s)
        driver.send(*_fate(driver, name, model, prompt, output, fate, slo))
    driver.run()
    assert driver.clock.now_s < 100.0 + 5.0 * len(plan) + 30.0, "waiting is bounded"
    for number, (model, _, output, _, fate, _) in enumerate(plan):
        _check(driver, f"r{number}", model, output, fate)
    assert driver.engine.kv_bytes() == driver.engine.host_kv_bytes() == 0
    assert not driver.mapped
    driver.loop.check_integrity()


def _fate(
    driver: LoopDriver, name: str, model: str, prompt: int, output: int, fate: str, slo: Slo
) -> tuple[Command, ...]:
    """What happens to a request a while after its submission: a cancel, or its next attempt here."""
    if fate == "cancel":
        return (Cancel(name, 1),)
    if fate == "move":
        produced = tuple(driver.tokens(name)[: output // 2])
        return (submit(name, model, prompt=prompt, max_tokens=output, epoch=2, produced=produced, slo=slo),)
    return ()


def _check(driver: LoopDriver, name: str, model: str, output: int, fate: str) -> None:
    wanted = expected(name, model, output)
    ends = [event for event in driver.of(Ended) if event.request_id == name]
    assert len(ends) == len({event.epoch for event in ends}), "one end an attempt"
    last = ends[-1]
    assert last.error_code == 0
    got = driver.tokens(name, last.epoch)
    if last.cancelled:
        assert fate == "cancel"
        assert got == wanted[: len(got)]
    else:
        assert last.finish is FinishReason.LENGTH
        assert last.completion_tokens == output
        assert got == wanted[output - len(got) :]


def test_somebody_always_advances_where_prompts_take_longer_than_turns() -> None:
    """Three models take turns after every step, each in the place of the others' KV."""
    driver = LoopDriver(int(1.5 * GB), SlackTurns(min_turn_s=0.0))
    driver.add("a", "b", "c", model_spec=spec(weight_bytes=GB))
    for model in "abc":
        driver.send(submit(f"r-{model}", model, prompt=400, max_tokens=20))
    driver.run()
    for model in "abc":
        assert driver.tokens(f"r-{model}") == expected(f"r-{model}", model, 20)
