import pytest

from hekaton.engine.profiles import CLASSES, DEVICES
from hekaton.errors import InvalidArgument, ModelTooLarge
from hekaton.sim.catalog import hardware, mix, names
from hekaton.sim.classes import STAND_IN, ServedClass, served
from hekaton.sim.run import Settings, simulate
from hekaton.sim.workload import Arrival

LARGE = ServedClass(145_000_000_000, 327_680, STAND_IN, tensor_parallel=4)


def test_the_class_of_a_model_is_that_of_its_number_mod_10() -> None:
    weights = [known.weight_bytes for known in mix(names(20)).values()]
    seven, nine, thirteen = (CLASSES[name].weight_bytes for name in ("qwen2.5-7b", "yi-1.5-9b", "llama-2-13b"))
    assert weights == [*[seven] * 6, *[nine] * 2, *[thirteen] * 2] * 2


@pytest.mark.parametrize("device", sorted(DEVICES - {"a10"}))
def test_a_tensor_parallel_group_is_one_worker_with_the_memory_and_bandwidth_of_all(device: str) -> None:
    one = hardware(["m00"], None, device, None, 16e9)
    group = hardware(["big"], {"big": LARGE}, device, None, 16e9)
    assert (one.devices, group.devices) == (1, 4)
    assert group.memory_bytes == 4 * one.memory_bytes
    assert group.costs["big"].load_s == pytest.approx(145 / 64)
    assert group.workers(8) == 2
    with pytest.raises(InvalidArgument, match="6 GPUs are no whole number of workers of 4"):
        group.workers(6)


def test_the_stand_in_is_as_published_on_its_own_device_and_scaled_by_roofline_elsewhere() -> None:
    there, here = (served(STAND_IN).costs(device, 64e9) for device in ("a100", "h20"))
    assert there.step_s(1, 1000) == pytest.approx(30.76e-3 + 0.0633e-3 + 0.452e-3)
    assert there.prefill_s(1024) == pytest.approx((29.44 + 0.1514 * 1024 + 8.3e-6 * 1024**2) * 1e-3, rel=1e-3)
    assert here.step_s(8, 8000) / there.step_s(8, 8000) == pytest.approx(2.039 / 4.0)
    assert here.prefill_s_per_token / there.prefill_s_per_token == pytest.approx(312 / 148)


def test_a_simulated_group_counts_its_devices() -> None:
    arrivals = [Arrival(0.0, "big", 100, 20), Arrival(1.0, "big", 100, 20)]
    result = simulate(arrivals, Settings(gpus=8, catalog={"big": LARGE}))
    assert (result.gpus, result.unfinished) == (8, 0)
    assert 0 < result.gpu_busy_fraction <= 1


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ({"a": served("qwen2.5-7b")}, "model 'big' is not in the catalog"),
        ({"a": served("qwen2.5-7b"), "big": LARGE}, "need a pool each"),
    ],
)
def test_models_that_no_pool_serves_together_are_refused(catalog: dict[str, ServedClass], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        hardware(["a", "big"], catalog, "h800", None, 16e9)


def test_a_group_that_is_too_small_is_named_with_its_size() -> None:
    with pytest.raises(ModelTooLarge, match=r"model big needs 145\.0 GB .* h20 has 80\.0 GB \(4 of them\)"):
        hardware(["big"], {"big": LARGE}, "h20", 20_000_000_000, 16e9)
