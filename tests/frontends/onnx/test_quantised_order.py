"""Every form in int8: by converting first, as the refusal of a quantised layer says."""

import numpy as np
import pytest

import deconvfix
from tests.support.int8 import statically_quantised, trained_like
from tests.support.onnx_models import run


def snr_db(got, want):
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


@pytest.mark.parametrize("form", ["subpixel", "resize", "equalized", "notch"])
def test_every_form_is_had_by_converting_before_quantising(form, tmp_path):
    """The order that the refusal of a quantised layer names: what is quantised is the converted function."""
    original = trained_like()
    rng = np.random.default_rng(5)
    data = None
    if form != "subpixel":
        data = [{"x": rng.standard_normal((8, 3, 8, 6)).astype(np.float32)} for _ in range(4)]
    x = {"x": rng.standard_normal((1, 3, 8, 6)).astype(np.float32)}
    floats = deconvfix.convert(original, to=form, calibration=data, example_inputs=x).model
    int8 = statically_quantised(floats, tmp_path / "int8.onnx")
    (before,), (want,), (got,) = (run(each, x, optimize=False) for each in (original, floats, int8))
    assert snr_db(got, want) > 25
    if form != "subpixel":  # as near to its own function, and not to the original's
        assert snr_db(got, before) < snr_db(got, want) - 6
    # The other order, which is refused but for the exact form, with the sentence that says so.
    quantised_first = statically_quantised(original, tmp_path / "first.onnx")
    plan = deconvfix.convert(quantised_first, to=form, calibration=data, example_inputs=x).plan
    words = [str(refusal) for refusal in plan.refused]
    assert (words == []) is (form == "subpixel")
    assert all("Convert the float file, and quantise what comes out" in each for each in words)
