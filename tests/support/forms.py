"""Forms run by the meaning of their steps, and strategies for their settings."""

import numpy as np
from hypothesis import strategies as st

from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.rearrange import rearrange
from deconvfix.core.steps import run
from deconvfix.forms import form
from deconvfix.forms.base import Settings

interpolations = st.sampled_from(["nearest", "linear"])

padding_modes = st.sampled_from(["reflect", "replicate", "zeros"])


def run_form(name, case, settings=None, weight=None):
    """A layer in a form, run by the executable meaning of its steps."""
    settings = settings or Settings()
    chosen = form(name)
    compiled = chosen.compile(case.spec, settings)
    kernel = chosen.fit(case.spec, settings, case.weight if weight is None else weight)
    new_weight = rearrange(compiled.weight, kernel, case.spec.groups)
    bias = None if case.bias is None else rearrange(compiled.bias, case.bias)
    return run(compiled.steps, case.x, new_weight, bias)


def options_of(to):
    """Of a conversion to a form. A fit to the weights alone is asked for by name; exact forms have none."""
    return {"to": to} if form(to).is_exact else {"to": to, "init": "fit"}


def arguments_of(to):
    """The same for the command line."""
    return [word for name, value in options_of(to).items() for word in (f"--{name}", value)]


def phases_of(spec):
    return phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)


def spread_of_phases(spec, kernel):
    sums = phase_sums(kernel, phases_of(spec), spec.stride)
    return float(np.ptp(sums.reshape(*sums.shape[:2], -1), axis=-1).max(initial=0))


def bilinear(spec):
    """The kernel of bilinear upsampling, as FCN initialises it: k = 2s - s mod 2."""
    kernel = np.ones(())
    for s in spec.stride:
        k = 2 * s - s % 2
        taps = 1 - np.abs(np.arange(k) - (k - 1) / 2) / s
        kernel = np.multiply.outer(kernel, taps)
    return np.broadcast_to(kernel, (*spec.weight_shape[:2], *kernel.shape)).copy()
