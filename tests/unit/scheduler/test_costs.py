from dataclasses import replace

from hekaton.facts import ModelSpec
from hekaton.policy.costs import guessed_costs
from hekaton.rpc.convert import costs_to_pb
from hekaton_scheduler.costs import UNKNOWN, PoolCosts

SPEC = ModelSpec("d", "emulated", "bfloat16", 1000, 10, 4096, 256)
GUESS = guessed_costs(1000, 10)
FAST, SLOW = replace(GUESS, load_s=1.0), replace(GUESS, load_s=3.0)


def costs() -> PoolCosts:
    return PoolCosts({"m": SPEC}.get)


def test_what_nobody_has_measured_is_guessed_from_the_spec() -> None:
    assert costs()("m") == GUESS
    assert costs()("gone") == UNKNOWN


def test_what_nobody_has_measured_costs_what_others_do_for_its_size() -> None:
    pool = PoolCosts({"m": SPEC, "large": replace(SPEC, weight_bytes=3000, kv_bytes_per_token=20)}.get)
    assert pool("large").load_s == guessed_costs(3000, 20).load_s
    pool.measured("w1", [costs_to_pb("m", FAST)])
    large = pool("large")
    assert (large.weight_bytes, large.kv_bytes_per_token, large.load_s) == (3000, 20, 3.0)
    pool.measured("w1", [costs_to_pb("large", replace(SLOW, weight_bytes=3000))])
    assert pool("large").load_s == SLOW.load_s


def test_measurements_of_several_workers_are_averaged() -> None:
    pool = costs()
    pool.measured("w1", [costs_to_pb("m", FAST)])
    assert pool("m") == FAST
    pool.measured("w2", [costs_to_pb("m", SLOW)])
    assert pool("m").load_s == 2.0
    pool.measured("w2", [costs_to_pb("m", FAST)])
    assert pool("m") == FAST


def test_a_worker_that_is_gone_does_not_count_unless_it_was_the_only_one() -> None:
    pool = costs()
    pool.measured("w1", [costs_to_pb("m", FAST)])
    pool.measured("w2", [costs_to_pb("m", SLOW)])
    pool.forget("w1")
    assert pool("m") == SLOW
    pool.forget("w2")
    assert pool("m") == SLOW


def test_measurements_of_an_earlier_model_of_that_name_do_not_count() -> None:
    pool = costs()
    pool.measured("w1", [costs_to_pb("m", replace(FAST, weight_bytes=500))])
    assert pool("m").load_s == 2.0, "as of any model of half its size"
    assert pool("m").weight_bytes == 1000
