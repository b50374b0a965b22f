"""Second moments in torch: the same as in NumPy, in pieces, and over several processes."""

from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.fit import moments, products
from deconvfix.fit.moments import Moments
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch import calibrate as torch_calibrate
from deconvfix.frontends.torch.calibrate import TENSORS
from tests.support.fits import accepts, are_equal, fitted_forms, moments_of, settings_drawn, several
from tests.support.strategies import cases


def in_torch(spec, name, settings):
    """As `frontends.calibrate` makes them for modules: each call may have an output_padding of its own."""
    return Moments(spec, lambda called: form(name).design(called, settings), TENSORS)


def torch_moments_of(name, case, settings, y, pieces=1):
    sums = in_torch(case.spec, name, settings)
    for x_part, y_part in zip(
        np.array_split(case.x, pieces), np.array_split(y, pieces), strict=True
    ):
        sums.add(torch.from_numpy(x_part), torch.from_numpy(y_part))
    return sums


@given(cases(), fitted_forms, settings_drawn)
def test_moments_are_sums(case, name, settings):
    """Batches one after the other are the whole batch; integers, so to the bit."""
    if not accepts(name, case, settings) or settings.interpolation == "linear":
        return
    case = replace(case, x=np.concatenate([case.x, case.x[:, :, ::-1] + 1]))
    y = case.expected
    whole = torch_moments_of(name, case, settings, y)
    pieces = torch_moments_of(name, case, settings, y, pieces=len(y))
    for group in range(case.spec.groups):
        for one, other in zip(whole.of_group(group), pieces.of_group(group), strict=True):
            assert all(map(np.array_equal, one, other))


@hypothesis.settings(max_examples=50)  # each is slow: both sides of every phase of a layer
@given(cases(), fitted_forms, settings_drawn)
def test_numpy_and_torch_agree_bit_for_bit(case, name, settings):
    """Sums of products of small integers, of their means and of half-pixel weights, are exact in binary
    where the strides are powers of two; nearest upsampling is exact for every stride."""
    if not accepts(name, case, settings):
        return
    if settings.interpolation == "linear" and set(case.spec.stride) - {1, 2, 4}:
        settings = replace(settings, interpolation="nearest")
    case, y = several(case)
    arrays = moments_of(name, case, settings, y)
    tensors = torch_moments_of(name, case, settings, y)
    assert are_equal(arrays, tensors, case.spec.groups)
    assert (arrays.samples, arrays.has_heldout) == (tensors.samples, tensors.has_heldout)


@pytest.mark.parametrize("name", ["equalized", "resize", "notch"])
def test_samples_one_by_one_are_all_samples(monkeypatch, name):
    """Memory is bounded by working through the samples in pieces."""
    spec = ConvTransposeSpec(4, 6, (4, 3), (2, 2), ((1, 1), (1, 1)), (0, 1), (1, 1), 2, True)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (6, 4, 7, 5)).astype(np.float32)
    y = rng.integers(-3, 4, (6, 6, *spec.output_size((7, 5)))).astype(np.float32)
    found, samples = [], []

    def watched(*args):
        samples.append(args[3].shape[1])
        products.add_products(*args)

    monkeypatch.setattr(moments, "add_products", watched)
    for most in (2**22, 64):
        monkeypatch.setattr(products, "_MOST_ELEMENTS", most)
        sums = moments.Moments(spec, form(name).design(spec, Settings(reach=1)))
        sums.add(x, y)
        tensors = in_torch(spec, name, Settings(reach=1))
        tensors.add(torch.from_numpy(x), torch.from_numpy(y))
        for kept in (sums, tensors):
            kept.of_group(0)
        found += [sums, tensors]
    assert all(are_equal(found[0], other, 2) for other in found[1:])
    # Five to fit to, one held out; NumPy's and torch's.
    assert samples == [5, 1] * 2 + [1] * 12


def test_processes_that_take_turns_hold_out_the_same_samples(monkeypatch):
    spec = ConvTransposeSpec.create(1, 1, (4,), stride=(2,), padding=(1,))
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (11, 1, 5), generator=generator).double()
    y = torch.randint(-3, 4, (11, 1, 10), generator=generator).double()

    def held(rank, world):
        monkeypatch.setattr(torch_calibrate, "rank", lambda: rank)
        monkeypatch.setattr(torch_calibrate, "world", lambda: world)
        moments = in_torch(spec, "equalized", Settings())
        moments.add(x[rank::world], y[rank::world])
        return moments.of_group(0)[1], moments.held

    whole, count = held(0, 1)
    assert count == 2
    for world in (2, 3):
        parts = [held(rank, world) for rank in range(world)]
        assert sum(number for _, number in parts) == count
        for phase, wanted in enumerate(whole):
            assert np.array_equal(sum(sums[phase] for sums, _ in parts), wanted)
