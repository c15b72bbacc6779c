from dataclasses import replace

from hekaton.policy.costs import differ, guessed_costs, mean_costs, scaled_costs

GUESS = guessed_costs(weight_bytes=8_000_000_000, kv_bytes_per_token=1000)


def test_a_guess_reads_the_weights_once_a_step() -> None:
    assert (GUESS.weight_bytes, GUESS.kv_bytes_per_token) == (8_000_000_000, 1000)
    assert GUESS.load_s == GUESS.step_s(1, 0) == 2.0


def test_a_mean_is_of_every_cost() -> None:
    mean = mean_costs([GUESS, replace(GUESS, load_s=4.0, step_s_per_request=0.5)])
    assert mean == replace(GUESS, load_s=3.0, step_s_per_request=0.25)


def test_swaps_scale_with_kv_and_count_in_a_mean_where_all_have_measured_them() -> None:
    measured = replace(GUESS, swap_s_per_token=1e-3)
    assert scaled_costs(measured, 16_000_000_000, 500).swap_s_per_token == 5e-4
    assert measured.slowed(2.0).kv_s_per_token == 2e-3
    assert mean_costs([measured, replace(GUESS, swap_s_per_token=3e-3)]).kv_s_per_token == 2e-3
    assert mean_costs([measured, GUESS]).swap_s_per_token == 0.0
    assert GUESS.kv_s_per_token == 2.0 * 1000 / 8_000_000_000, "as many bytes of weights"


def test_costs_differ_by_more_than_a_twentieth() -> None:
    assert differ(GUESS, None)
    assert not differ(GUESS, GUESS)
    assert not differ(replace(GUESS, load_s=2.09), GUESS)
    assert differ(replace(GUESS, load_s=2.11), GUESS)
    assert differ(replace(GUESS, step_s_per_request=1e-9), GUESS), "from nothing to something"
