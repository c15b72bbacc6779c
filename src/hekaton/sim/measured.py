"""A model's costs as a pool has measured them, from the file that `hekaton models show MODEL --json` prints."""

import math
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import msgspec

from hekaton.engine.profiles import Fit
from hekaton.errors import InvalidArgument
from hekaton.policy.costs import DeviceProfile
from hekaton.policy.types import ModelCosts
from hekaton.sim.classes import ServedClass


class ProfileFile(msgspec.Struct, frozen=True):
    """What is read of it."""

    profiles: list[DeviceProfile]


def read(path: Path) -> DeviceProfile:
    """Raises InvalidArgument, which names the file."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=ProfileFile)
        return _only(file.profiles)
    except (msgspec.DecodeError, InvalidArgument) as error:
        raise InvalidArgument(f"{path}: {' '.join(str(error).split())}") from None


def catalog_of(models: Iterable[str], costs: ModelCosts) -> dict[str, ServedClass]:
    """Models that all cost the same."""
    fit = Fit(
        prefill_base_ms=costs.prefill_base_s * 1e3,
        prefill_us_per_token=costs.prefill_s_per_token * 1e6,
        step_base_ms=costs.step_base_s * 1e3,
        step_us_per_request=costs.step_s_per_request * 1e6,
        step_ns_per_context_token=costs.step_s_per_context_token * 1e9,
        swap_us_per_token=costs.swap_s_per_token * 1e6,
    )
    served = ServedClass(costs.weight_bytes, costs.kv_bytes_per_token, fit=fit)
    return dict.fromkeys(models, served)


def _only(profiles: list[DeviceProfile]) -> DeviceProfile:
    if not profiles:
        raise InvalidArgument("it holds no profile: no worker has measured this model yet")
    if len(profiles) > 1:
        devices = ", ".join(one.device for one in profiles)
        raise InvalidArgument(f"it holds profiles of {devices}: keep the one to simulate")
    _check(profiles[0])
    return profiles[0]


def _check(profile: DeviceProfile) -> None:
    costs = profile.costs
    above = (
        profile.device_memory_bytes, costs.weight_bytes, costs.kv_bytes_per_token, costs.load_s, costs.prefill_base_s,
        costs.step_base_s,
    )  # fmt: skip
    if not all(0 <= value < math.inf for value in astuple(costs)) or min(above) <= 0:
        raise InvalidArgument("sizes, loads and the times of a call must be above 0, and no time below it")
