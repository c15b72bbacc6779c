from pathlib import Path

import pytest

from hekaton.engine.profiles import CLASSES
from hekaton.errors import InvalidArgument
from hekaton.sim import market
from hekaton.sim.classes import STAND_IN

SAMPLES = Path(market.__file__).parent / "markets"
SEVEN = "classes: {seven: {profile: qwen2.5-7b}}\n"
FIT = "{prefill_base_ms: 5, prefill_us_per_token: 20, step_base_ms: 8, step_us_per_request: 90, \
step_ns_per_context_token: 80}"


def read(folder: Path, text: str) -> market.Market:
    path = folder / "market.yaml"
    path.write_text(text)
    return market.read(path)


def test_a_market_has_classes_models_and_rates(tmp_path: Path) -> None:
    text = """
classes:
  seven: {profile: qwen2.5-7b}
  small: {weight_gb: 8.2, kv_bytes_per_token: 65536}
models:
  - {name: chat, class: seven, rate_per_s: 0.5}
  - {name: tail, class: small, count: 10}
popularity: {mean_rate_per_s: 0.1, zipf: 1.0}
"""
    found = read(tmp_path, text)
    assert list(found.catalog) == ["chat", *(f"tail-{index}" for index in range(10))]
    assert found.catalog["chat"].weight_bytes == CLASSES["qwen2.5-7b"].weight_bytes
    assert found.catalog["tail-3"].weight_bytes == 8_200_000_000
    assert found.rates_per_s["chat"] == 0.5
    assert sum(found.rates_per_s[f"tail-{index}"] for index in range(10)) == pytest.approx(1.0)


def test_a_market_is_split_by_tensor_parallel_degree(tmp_path: Path) -> None:
    text = f"""
classes: {{a: {{profile: qwen2.5-7b}}, b: {{weight_gb: 140, kv_bytes_per_token: 9, tensor_parallel: 4}},
  c: {{weight_gb: 40, kv_bytes_per_token: 9, tensor_parallel: 2, fit: {FIT}}}}}
models:
  - {{name: x, class: a, rate_per_s: 1}}
  - {{name: y, class: b, rate_per_s: 2}}
  - {{name: z, class: c, rate_per_s: 3}}
"""
    pools = read(tmp_path, text).pools()
    assert {degree: dict(pool.rates_per_s) for degree, pool in pools.items()} == {1: {"x": 1}, 2: {"z": 3}, 4: {"y": 2}}
    assert pools[4].catalog["y"].profile == STAND_IN
    assert pools[2].catalog["z"].costs("h20", 16e9).step_base_s == pytest.approx(8e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [", "market.yaml: "),
        ("", "market.yaml: Expected `object`"),
        (SEVEN + "models: []", r"models"),
        (SEVEN + "models: [{name: a, class: none, rate_per_s: 1}]", "model 'a': there is no class 'none'"),
        (SEVEN + "models: [{name: a, class: seven}]", "model 'a' has no rate_per_s"),
        (SEVEN + "models: [{name: a, class: seven, rate_per_s: -1}]", r"models\[0\]\.rate_per_s"),
        (SEVEN + "models: [{name: a, class: seven, rate_per_s: .nan}]", r"models\[0\]\.rate_per_s"),
        (SEVEN + "models: [{name: a, class: seven, rate_per_s: 1, count: 0}]", r"models\[0\]\.count"),
        (SEVEN + "models: [{name: a, class: seven, rate_per_s: 1}, {name: a, class: seven, rate_per_s: 1}]", "twice"),
        (SEVEN + "models: [{name: a, clas: seven}]", r"models\[0\]"),
        (
            SEVEN + "models: [{name: a, class: seven, rate_per_s: 1}]\npopularity: {mean_rate_per_s: 1}",
            "popularity: every model",
        ),
        (SEVEN + "models: [{name: a, class: seven}]\npopularity: {mean_rate_per_s: -1}", "rates must be positive"),
        ("classes: {a: {profile: none}}\nmodels: [{name: a, class: a}]", "class 'a': unknown profile 'none'"),
        ("classes: {a: {weigth_gb: 3}}\nmodels: [{name: a, class: a}]", "class 'a': .*weigth_gb"),
        ("classes: {a: {weight_gb: 3}}\nmodels: [{name: a, class: a}]", "class 'a': give weight_gb and"),
        (
            "classes: {a: {profile: qwen2.5-7b, tensor_parallel: 2}}\nmodels: [{name: a, class: a}]",
            "class 'a': no profile of 2 devices",
        ),
        (
            f"classes: {{a: {{profile: qwen2.5-7b, fit: {FIT.replace('8,', '0,')}}}}}\nmodels: [{{name: a, class: a}}]",
            "class 'a': the times of a fit",
        ),
    ],
)
def test_a_malformed_market_is_refused_with_its_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_the_sample_markets_are_what_they_say() -> None:
    production = market.read(SAMPLES / "production.yaml")
    rates = production.rates_per_s.values()
    assert {degree: len(pool.catalog) for degree, pool in production.pools().items()} == {1: 28, 4: 19}
    assert (min(rates), max(rates), sum(rates) / 47) == pytest.approx((0.01, 1.13, 0.037), rel=0.01)
    thousand = market.read(SAMPLES / "thousand.yaml")
    assert len(thousand.catalog) == 1000
    assert sum(thousand.rates_per_s.values()) == pytest.approx(37)
