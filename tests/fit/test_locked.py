"""What is locked to the phase, as equations: the same as the means by their definition."""

import numpy as np
import pytest

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import ConvTranspose, run
from deconvfix.fit.locked import LockedMoments, any_kernel, roughness, weights_of
from deconvfix.fit.regression import Equations
from deconvfix.forms import form
from deconvfix.forms.base import Settings


def spec_of(ndim, **changes):
    geometry = {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": (4, 3)[:ndim],
        "stride": (2, 2)[:ndim],
        "padding": ((1, 1), (1, 0))[:ndim],
        "output_padding": (0,) * ndim,
        "dilation": (1,) * ndim,
        "groups": 2,
        "bias": False,
    }
    return ConvTransposeSpec(**{**geometry, **changes})


def phase_means(values, period, repeats):
    """Patch by patch and phase by phase, with loops: {patch: (phases, C)}, less the mean of all phases."""
    cells = [size // (p * r) for size, p, r in zip(values.shape[2:], period, repeats, strict=True)]
    found = []
    for sample in values:
        for cell in np.ndindex(*cells):
            begin = [c * p * r for c, p, r in zip(cell, period, repeats, strict=True)]
            means = []
            for phase in np.ndindex(*period):
                at = tuple(
                    slice(b + f, b + p * r, p)
                    for b, f, p, r in zip(begin, phase, period, repeats, strict=True)
                )
                means.append(sample[(slice(None), *at)].reshape(len(sample), -1).mean(1))
            found.append(np.array(means) - np.mean(means, 0))
    return np.array(found)


@pytest.mark.parametrize(
    ("ndim", "period", "repeats"), [(1, (2,), (3,)), (1, (4,), (2,)), (2, (2, 4), (2, 2))]
)
def test_the_equations_are_those_of_the_means(ndim, period, repeats):
    """The quadratic form at any kernel is the weighted distance of the means, but for a constant."""
    spec, rng = spec_of(ndim), np.random.default_rng(0)
    design = any_kernel(form("equalized").design(spec, Settings()))
    x = rng.standard_normal((3, 4, *(13, 9)[:ndim]))
    kernels = [rng.standard_normal(spec.weight_shape) for _ in range(2)]
    outputs = [run((ConvTranspose(spec),), x, kernel) for kernel in kernels]
    goal = rng.standard_normal(outputs[0].shape)
    wanted = phase_means(goal, period, repeats)
    weights = rng.random(len(wanted))
    locked = LockedMoments(spec, design, period, repeats)
    locked.add(x, goal, weights)
    distances, forms = [], []
    for kernel, output in zip(kernels, outputs, strict=True):
        error = phase_means(output, period, repeats) - wanted
        distances.append(np.prod(repeats) * (weights * (error**2).sum((1, 2))).sum())
        value = 0.0
        for group in range(2):
            size = 2 * design.basis.shape[0]
            none = Equations(np.zeros((size + 1, size + 1)), np.zeros((size + 1, 3)), 0.0)
            system = locked.beside(none, group, 1.0)
            w = design.numbers(kernel, 2).reshape(2, 2, 3, -1)[group]
            v = np.append(w.transpose(2, 0, 1).reshape(size, 3), np.ones((1, 3)), 0)
            value += np.sum(v * (system.normal @ v)) - 2 * np.sum(v * system.right)
        forms.append(value)
    # The constant is the same for both kernels.
    assert forms[0] - forms[1] == pytest.approx(distances[0] - distances[1], rel=1e-9)
    assert abs(distances[0] - distances[1]) > 1


def test_a_patch_counts_the_more_the_smoother_it_is():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 2, 16, 16))
    values[..., 8:, :] *= 0.1
    # A grid does not make a patch rough.
    values[..., ::2] += 5.0
    found = roughness(values, (2, 2), (4, 4))
    assert found.shape == (4,)
    assert found[2:].max() < 0.05 * found[:2].min()
    [weights] = weights_of([found])
    assert weights[2:].min() > 5 * weights[:2].max()
    assert weights.mean() == pytest.approx(1)
