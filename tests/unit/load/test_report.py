from dataclasses import astuple

import pytest

from hekaton.facts import Slo
from hekaton.load.report import report
from hekaton.load.sample import Sample

SLO = Slo(ttft_s=1.0, tbt_s=0.5)


def sample(model: str = "a", times_s: tuple[float, ...] = (), status: str = "", arrival_s: float = 0.0) -> Sample:
    end_s = times_s[-1] if times_s else 0.0
    return Sample(model, arrival_s, 8, 4, SLO, list(times_s), end_s=end_s, status=status)


def test_token_i_is_due_after_ttft_and_i_times_tbt() -> None:
    # Due at 1.0, 1.5, 2.0: the second is late, the third is in time again.
    assert sample(times_s=(1.0, 1.6, 2.0)).on_time == 2


def test_a_failed_request_owes_all_that_it_asked_for_and_has_nothing_on_time() -> None:
    failed = sample(times_s=(0.5, 0.6), status="UNAVAILABLE")
    assert (failed.on_time, failed.owed) == (0, 4)


def test_a_load_is_reported_by_token_by_request_and_by_model() -> None:
    samples = [
        sample("a", (0.5, 0.7, 0.9)),
        sample("b", (2.0, 2.1), arrival_s=2.0),
        sample("b", status="RESOURCE_EXHAUSTED"),
    ]
    result = report(samples)
    assert (result.requests, result.finished, result.failed) == (3, 2, {"RESOURCE_EXHAUSTED": 1})
    assert result.token_attainment == pytest.approx(3 / 9)
    assert result.request_attainment == pytest.approx((1 + 0 + 0) / 3)
    assert result.min_model_attainment == result.models["b"].token_attainment == 0.0
    assert result.duration_s == pytest.approx(4.1)
    assert result.tokens == 5
    assert result.tokens_per_s == pytest.approx(5 / 4.1)
    assert result.goodput_tokens_per_s == pytest.approx(3 / 4.1)
    assert result.ttft is not None
    assert astuple(result.ttft) == pytest.approx((1.25, 1.85, 1.985))
    assert result.models["a"].tbt is not None
    assert result.models["a"].tbt.p50 == pytest.approx(0.2)
