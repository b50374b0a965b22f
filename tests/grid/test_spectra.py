"""High-pass residuals and spectra of arrays."""

import numpy as np
import pytest

from deconvfix.grid import spectra


@pytest.mark.parametrize("period", [(4,), (3, 2), (2, 3, 2)], ids=str)
def test_high_pass_lets_the_grid_through_and_takes_ramps_away(period):
    axes = np.meshgrid(*(np.arange(7 * s) for s in period), indexing="ij")
    ramp = 3 + sum(0.1 * (i + 1) * axis for i, axis in enumerate(axes))
    half = tuple(slice(s // 2, 7 * s - s // 2) for s in period)
    phase = axes[-1] % period[-1]
    grid = np.cos(2 * np.pi * phase / period[-1])
    got = spectra.high_pass((ramp + grid)[None, None], period)
    np.testing.assert_allclose(got[0, 0], grid[half], atol=1e-10)


def test_radial_spectrum_finds_the_ring_of_a_wave():
    i, j = np.meshgrid(np.arange(128), np.arange(96), indexing="ij")
    wave = np.cos(2 * np.pi * (0.15 * i + 0.2 * j))
    found = spectra.radial_spectrum(wave[None, None])
    assert found.frequency[int(np.argmax(found.power_db))] == pytest.approx(0.25, abs=1 / 64)
    assert spectra.radial_spectrum(wave[None]) is None
