"""Weights that nobody trained are recognised, and others are not taken for them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.signal.windows import kaiser

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.grid.fixed_basis import fixed_basis
from tests.support.bases import haar

FIXTURES = Path(__file__).parents[2] / "fixtures"
WINDOWS = {"Hann": np.hanning, "rectangular": np.ones, "Hamming": np.hamming}


def described(weight, stride, groups=1, **options):
    taps = weight.shape[2:]
    spec = ConvTransposeSpec.create(
        len(weight), weight.shape[1] * groups, taps, stride=stride, groups=groups,
        **{"bias": False, **options},
    )  # fmt: skip
    return fixed_basis(spec, weight)


def fourier(size, window="Hann"):
    """Real and imaginary parts of an inverse Fourier transform of real signals, (bins, 1, size) each."""
    bins, time = np.arange(size // 2 + 1)[:, None], np.arange(size)[None]
    shape = WINDOWS[window](size)
    real = np.cos(2 * np.pi * bins * time / size) * shape
    imaginary = -np.sin(2 * np.pi * bins * time / size) * shape
    return real[:, None], imaginary[:, None]


def cosine_modulated(bands, taps, cutoff):
    """The synthesis bank of multi-band vocoders (Nguyen 1994)."""
    n, k = np.arange(taps + 1) - taps / 2, np.arange(bands)[:, None]
    prototype = cutoff * np.sinc(cutoff * n) * kaiser(taps + 1, 9.0)
    phase = (-1.0) ** k * np.pi / 4
    return (2 * prototype * np.cos((2 * k + 1) * np.pi / (2 * bands) * n - phase))[:, None]


DAUBECHIES = np.array([0.48296, 0.83652, 0.22414, -0.12941])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [20, 64, 512])
@pytest.mark.parametrize("rounding", [np.float64, np.float32, np.float16])
def test_inverse_fourier_transform(size, window, rounding):
    real, imaginary = fourier(size, window)
    for weight in (real, imaginary, np.concatenate([real, imaginary])):
        assert "Fourier" in described(weight.astype(rounding).astype(float), [size // 4])


def test_fourier_transform_along_one_of_two_axes():
    real, _ = fourier(64)
    assert described(real[..., None], [16, 1])
    assert described(real[:, :, None], [1, 16])


def test_fourier_transform_of_each_channel():
    real, _ = fourier(64)
    assert described(np.concatenate([real, real]), [16], groups=2)


@pytest.mark.parametrize(("bands", "taps", "cutoff"), [(4, 62, 0.142), (8, 124, 0.0708)])
def test_cosine_modulated_bank(bands, taps, cutoff):
    assert "orthonormal" in described(cosine_modulated(bands, taps, cutoff), [bands])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_haar_wavelets(ndim):
    assert "wavelet" in described(haar(ndim), [2] * ndim)
    assert described(np.concatenate([haar(ndim)] * 3), [2] * ndim, groups=3)


def test_daubechies_wavelets():
    high = DAUBECHIES[::-1] * [1, -1, 1, -1]
    bank = np.stack([DAUBECHIES, high])[:, None]
    assert "wavelet" in described(bank, [2])
    assert described(bank, [4]) is None, "not complete at this stride"
    bank[1] = -DAUBECHIES
    assert described(bank, [2]) is None, "not orthogonal"


@pytest.mark.parametrize("window", ["Hann", "Hamming", "rectangular"])
@pytest.mark.parametrize("size", [6, 8, 12, 16])
def test_inverse_fourier_transform_of_few_taps(size, window):
    real, imaginary = fourier(size, window)
    both = np.concatenate([real, imaginary]).astype(np.float32).astype(float)
    assert "Fourier" in described(both, [size // 2])
    rng = np.random.default_rng(0)
    assert described(both + 0.05 * rng.standard_normal(both.shape), [size // 2]) is None


# Synthesis filters of JPEG 2000, low and high pass.
BIORTHOGONAL = {
    "5/3": ([0.5, 1, 0.5], [-0.125, -0.25, 0.75, -0.25, -0.125]),
    "9/7": (
        [-0.091271763114, -0.057543526229, 0.591271763114, 1.11508705,
         0.591271763114, -0.057543526229, -0.091271763114],
        [0.026748757411, 0.016864118443, -0.078223266529, -0.266864118443, 0.602949018236,
         -0.266864118443, -0.078223266529, 0.016864118443, 0.026748757411],
    ),
}  # fmt: skip


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("name", BIORTHOGONAL)
def test_biorthogonal_wavelets(name, ndim):
    low, high = (np.array(taps) for taps in BIORTHOGONAL[name])
    # Both in the middle of a kernel, of one length.
    pair = [np.pad(taps, (11 - len(taps)) // 2) for taps in (low, high)]
    rows = pair if ndim == 1 else [np.multiply.outer(a, b) for a in pair for b in pair]
    bank = np.stack(rows)[:, None]
    assert "biorthogonal" in described(bank, [2] * ndim)
    assert described(bank, [3] * ndim) is None
    assert described(np.concatenate([bank[:1], bank[:-1]]), [2] * ndim) is None
    assert (
        described(bank + 0.01 * np.random.default_rng(0).standard_normal(bank.shape), [2] * ndim)
        is None
    )


def test_linear_upsampling_is_no_wavelet():
    """Equal phase sums alone, which is what has no grid."""
    row = np.array([0.25, 0.75, 0.75, 0.25])
    assert described(np.stack([row, row])[:, None], [2]) is None


@pytest.mark.parametrize("groups", [1, 4])
def test_insertion_of_zeros(groups):
    """The step before a synthesis filter bank of multi-band vocoders."""
    weight = np.zeros((4, 4 // groups, 4))
    weight[range(4), np.arange(4) % (4 // groups), 0] = 4.0
    assert "insertion of zeros" in described(weight, [4], groups=groups)
    assert "zeros" not in str(described(weight, [1], groups=groups)), "a permutation of channels"
    weight[2, 2 % (4 // groups), 0] = 3.0
    assert described(weight, [4], groups=groups) is None


@pytest.mark.parametrize(
    ("c_in", "taps", "stride"),
    [(33, 64, 16), (513, 1024, 256), (16, 16, 8), (64, 16, 8), (4, 63, 4), (8, 4, 2), (16, 4, 4)],
)
def test_random_weights_are_none(c_in, taps, stride):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert described(rng.standard_normal((c_in, 1, taps)), [stride]) is None


def test_smooth_kernels_are_none():
    """An upsampling layer learns low passes: narrow bands, all at the same place."""
    rng = np.random.default_rng(0)
    smooth = np.hanning(16) * rng.standard_normal((32, 1, 1))
    assert described(smooth + 0.02 * rng.standard_normal((32, 1, 16)), [8]) is None


def test_trained_weights_are_none():
    seen = 0
    for file in FIXTURES.glob("*.safetensors"):
        for weight in load_file(file).values():
            if weight.ndim >= 3 and weight.size:
                seen += 1
                assert described(weight.astype(float), [2] * (weight.ndim - 2)) is None
    assert seen > 20


def test_disturbed_bases_are_none():
    """What was trained from such a start is a layer like others."""
    rng = np.random.default_rng(0)
    real, _ = fourier(64)
    for weight, stride in ((real, 16), (haar(1), 2), (cosine_modulated(4, 62, 0.142), 4)):
        noise = rng.standard_normal(weight.shape) * weight.std()
        assert described(weight + noise, [stride]) is None


def test_a_bias_was_trained():
    assert described(haar(2), [2, 2], bias=True) is None


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_odd_numbers_are_none(value):
    assert described(np.full((4, 1, 4), value), [4]) is None
