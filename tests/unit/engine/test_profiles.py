from dataclasses import astuple

import numpy as np
import pytest
from bench.fit_profiles import fit_all, read

from hekaton.engine.profiles import FITS


def test_the_fits_that_ship_are_those_of_the_data() -> None:
    fitted = fit_all(read())
    assert fitted.keys() == FITS.keys()
    for key, fit in FITS.items():
        assert astuple(fitted[key].fit) == pytest.approx(astuple(fit), rel=0.01), key


def test_the_errors_are_those_that_are_named() -> None:
    fitted = fit_all(read())["h800", "qwen2.5-7b"]
    assert np.median(fitted.prefill_errors) == pytest.approx(0.06, abs=0.005)
    assert fitted.step_errors.max() == pytest.approx(0.12, abs=0.005)
    assert not fitted.is_borrowed


def test_every_slope_is_positive() -> None:
    """Copies of KV are not in the data."""
    assert all(value > 0 for fitted in fit_all(read()).values() for value in astuple(fitted.fit)[:5])
