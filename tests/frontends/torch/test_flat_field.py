"""What a layer answers to constants, by its formula and by torch."""

import numpy as np
import torch
from hypothesis import given, settings
from torch import nn

from deconvfix.grid import flat_field
from tests.support import strategies
from tests.support.grids import inner_period


@given(strategies.specs(symmetric=True, torch_limits=True))
@settings(max_examples=40)
def test_flat_field_of_a_layer_is_what_it_answers_inside(spec):
    rng = np.random.default_rng(3)
    weight, constants = (
        rng.standard_normal(spec.weight_shape),
        rng.standard_normal((2, spec.in_channels)),
    )
    bias = rng.standard_normal(spec.out_channels)
    sizes = [
        (big - 1) // s + 2 for big, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    x = torch.from_numpy(constants).reshape(2, -1, *[1] * spec.ndim).expand(-1, -1, *sizes)
    function = getattr(nn.functional, f"conv_transpose{spec.ndim}d")
    y = function(
        x,
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=spec.stride,
        output_padding=tuple(s - 1 for s in spec.stride),
        dilation=spec.dilation,
        groups=spec.groups,
    ).numpy()
    y = inner_period(spec, y)
    np.testing.assert_allclose(flat_field.layer_answer(spec, weight, bias, constants), y, atol=1e-9)
