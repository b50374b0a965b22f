"""The steps: the transposed one by its definition."""

import numpy as np
from hypothesis import given

from deconvfix.core.steps import Conv, ConvTranspose, Resize, run
from tests.support.strategies import cases


@given(cases())
def test_the_transposed_step_is_the_definition(case):
    got = run((ConvTranspose(case.spec),), case.x, case.weight, case.bias)
    assert np.array_equal(got, case.expected)


def test_the_wider_dtype_counts():
    """A result is as fine as the finer of input and weight."""
    for coarse, fine in ((np.float32, np.float64), (np.float16, np.float32)):
        for x, w in ((coarse, fine), (fine, coarse)):
            conv = Conv(2, 3, (2,), (0,), (1,), 1, bias=False)
            assert run((conv,), np.ones((1, 2, 5), x), np.ones((3, 2, 2), w)).dtype == fine


def test_linear_upsampling_is_held_inside_the_map():
    """Half-pixel centres; beyond the outermost ones their values go on."""
    (got,) = run((Resize((3,), "linear"),), np.array([[[0.0, 3.0, 12.0]]]), np.zeros(()))[0]
    np.testing.assert_allclose(got, [0, 0, 1, 2, 3, 6, 9, 12, 12])
