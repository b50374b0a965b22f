"""Grids in arrays: what is planted is seen and attributed, and chance is not accused."""

import numpy as np
import pytest

from deconvfix.grid import spectra, variance

WHITE = {1: (2, 1, 900), 2: (2, 3, 64, 60), 3: (1, 2, 24, 20, 28)}


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_white_noise_has_no_grid(ndim):
    """The share of p-values below 0.05 is what chance gives: at most 12 of 100 (p = 0.002)."""
    period = (4, 2, 2)[:ndim]
    rng = np.random.default_rng(0)
    low = stands_out = 0
    for _ in range(100):
        values = rng.standard_normal(WHITE[ndim])
        low += variance.phase_variance(values, period).p_value < 0.05
        peaks = spectra.spectral_peaks(values, period, {"up": period})
        stands_out += any(each.ratio_db > 12 for each in peaks)
    assert low <= 12
    assert stands_out <= 2


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_planted_grid_is_seen_and_attributed(ndim):
    period = (4, 2, 2)[:ndim]
    values = np.random.default_rng(0).standard_normal(WHITE[ndim])
    columns = np.arange(values.shape[2]) % 2
    values += 0.5 * np.where(columns, 1, -1).reshape(-1, *[1] * (ndim - 1))
    found = variance.phase_variance(values, period)
    assert found.p_value < 1e-12
    assert found.rms == pytest.approx(0.5, rel=0.2)
    # The window takes the variance of white noise down a little.
    assert found.share == pytest.approx(0.25 / 1.25, rel=0.35)
    own = {"slow": period, "fast": (2,) + (1,) * (ndim - 1), "other": (3,) * ndim}
    peak = max(spectra.spectral_peaks(values, period, own, 100.0), key=lambda p: p.ratio_db)
    assert (peak.frequency, peak.layers) == ((0.5,) + (0.0,) * (ndim - 1), ("fast", "slow"))
    assert peak.hz == (50.0 if ndim == 1 else None)


@pytest.mark.parametrize("values", [np.zeros((1, 1, 64)), np.full((1, 2, 64), 7.1)])
def test_constant_outputs_have_no_grid(values):
    assert variance.phase_variance(values, (4,)).p_value == 1.0
    assert all(each.ratio_db < 100 for each in spectra.spectral_peaks(values, (4,), {}))
