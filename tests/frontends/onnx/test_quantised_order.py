"""Every form in int8, in both orders: what is quantised is the converted function."""

import numpy as np
import pytest

import deconvfix
from tests.support.int8 import statically_quantised, trained_like
from tests.support.onnx_models import run


def snr_db(got, want):
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


@pytest.mark.parametrize("form", ["subpixel", "resize", "equalized", "notch"])
def test_every_form_is_had_in_both_orders(form, tmp_path):
    original = trained_like()
    rng = np.random.default_rng(5)
    data = None
    if form != "subpixel":
        data = [{"x": rng.standard_normal((8, 3, 8, 6)).astype(np.float32)} for _ in range(4)]
    x = {"x": rng.standard_normal((1, 3, 8, 6)).astype(np.float32)}
    options = {"to": form, "calibration": data, "example_inputs": x, "strict": True}
    floats = deconvfix.convert(original, **options).model
    int8 = statically_quantised(floats, tmp_path / "int8.onnx")
    # The other order: the integers of a quantised file are rearranged, or fitted and rounded again.
    first = statically_quantised(original, tmp_path / "first.onnx")
    other = deconvfix.convert(first, **options).model
    (before,), (want,) = (run(each, x, optimize=False) for each in (original, floats))
    for each in (int8, other):
        (got,) = run(each, x, optimize=False)
        assert snr_db(got, want) > 25
        if form != "subpixel":  # as near to its own function, and not to the original's
            assert snr_db(got, before) < snr_db(got, want) - 6
