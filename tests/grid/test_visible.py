"""The visible grid: what it sees, and what it does not take for one."""

import numpy as np
import pytest

from deconvfix.grid.visible import smooth_patches, visible_grid
from tests.support import pictures

PERIODS = {1: (8,), 2: (4, 2), 3: (2, 3, 2)}
SIZES = {1: (640,), 2: (96, 64), 3: (24, 36, 24)}


def lattice(ndim, amplitude, channels=2):
    """A pattern of one period with mean zero and that root mean square, for each channel."""
    period = PERIODS[ndim]
    pattern = np.random.default_rng(1).standard_normal((channels, *period))
    pattern -= pattern.reshape(channels, -1).mean(1).reshape(-1, *(1,) * ndim)
    pattern *= amplitude / np.sqrt((pattern**2).mean())
    repeats = [size // n for size, n in zip(SIZES[ndim], period, strict=True)]
    return np.tile(pattern, (1, *repeats))


def smooth(ndim, channels=2):
    """A slow wave between 0 and 1."""
    axes = np.meshgrid(*(np.linspace(0, 3, size) for size in SIZES[ndim]), indexing="ij")
    wave = 0.5 + 0.5 * np.sin(sum(axes) / 2)
    return np.stack([np.stack([wave] * channels)] * 3)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_lattice_on_a_smooth_picture_is_measured_as_large_as_it_is(ndim):
    """In steps of 1/255 of the range; the blur takes a little of it away."""
    picture = smooth(ndim)
    amplitude = 2 / 255 * np.ptp(picture)
    found = visible_grid(picture + lattice(ndim, amplitude), PERIODS[ndim], like=picture)
    assert found.mean == pytest.approx(2, rel=0.1)
    assert found.worst == pytest.approx(2, rel=0.2)
    assert abs(visible_grid(picture, PERIODS[ndim]).mean) < 0.2


def test_noise_is_no_grid():
    """What the mean over 16 periods holds by chance is subtracted."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (8, 3, 128, 128))
    found = visible_grid(noise, (4, 4))
    # By chance alone the mean of a phase would be as large as a quarter of the noise.
    by_chance = 255 * noise.std() / 4
    assert abs(found.mean) < 0.5 * by_chance


@pytest.mark.parametrize(("period", "most"), [((2, 2), 0.15), ((4, 4), 0.25), ((8, 8), 0.6)])
def test_photographs_have_none(period, most):
    """Less than a step; what is left is texture, of which large patches hold more."""
    found = visible_grid(np.concatenate(list(map(pictures.load, pictures.NAMES))), period)
    assert -0.3 < found.mean < most


def test_it_is_seen_on_photographs():
    picture = pictures.load("chelsea")
    pattern = np.kron(np.ones((1, 1, 160, 200)), [[1.0, -1.0], [-1.0, 1.0]])
    height, width = picture.shape[2:]
    seen = visible_grid(picture + 0.006 * pattern[:, :, :height, :width], (2, 2), like=picture)
    assert seen.mean == pytest.approx(0.006 * 255 / np.ptp(picture), rel=0.2)


def test_a_lattice_in_one_corner_does_not_hide():
    picture = smooth(2)
    # In the first of the patches that count.
    chosen = smooth_patches(picture, PERIODS[2])
    grid = lattice(2, 4 / 255)
    everywhere = visible_grid(picture + grid, PERIODS[2], like=picture)
    number, row, column = np.unravel_index(chosen[0], (3, 6, 8))
    mask = np.zeros((3, 1, 96, 64))
    mask[number, :, 16 * row : 16 * row + 16, 8 * column : 8 * column + 8] = 1
    found = visible_grid(picture + grid * mask, PERIODS[2], like=picture)
    assert found.worst > 3 * found.mean
    assert found.worst > 0.5 * everywhere.worst


def test_patches_are_chosen_whatever_grid_they_have():
    picture = smooth(2)
    assert np.array_equal(
        smooth_patches(picture, PERIODS[2]), smooth_patches(picture + lattice(2, 0.5), PERIODS[2])
    )


def test_what_cannot_be_measured_is_none():
    picture = smooth(2)
    assert visible_grid(picture[:, :, :8, :8], (4, 4)) is None
    assert visible_grid(picture, (1, 1)) is None
    assert visible_grid(np.full_like(picture, np.nan), (4, 2)) is None
    assert visible_grid(np.zeros_like(picture), (4, 2)) is None
    assert visible_grid(picture, (4, 2), like=picture[:1]) is None
