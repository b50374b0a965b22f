"""The steps: the transposed one by its definition."""

import numpy as np
from hypothesis import given

from deconvfix.core.steps import ConvTranspose, run
from tests.support.strategies import cases


@given(cases())
def test_the_transposed_step_is_the_definition(case):
    got = run((ConvTranspose(case.spec),), case.x, case.weight, case.bias)
    assert np.array_equal(got, case.expected)
