"""What all forms have in common: names, settings, and refusals that say what to do."""

from dataclasses import replace

import numpy as np
import pytest

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal
from deconvfix.forms import FORMS, form
from deconvfix.forms.base import Settings, too_large


@pytest.mark.parametrize(
    ("name", "spec", "settings", "readable", "fragments"),
    [
        ("subpixel", {}, {"init": "fit"}, True, ["uses the trained weight unchanged"]),
        ("resize", {}, {}, False, ["computed while the model runs", "'subpixel'"]),
        ("resize", {}, {"init": "exact"}, True, ["does not divide", "'fit'"]),
        ("equalized", {}, {"init": "random"}, True, ["corrects the trained weight"]),
        ("equalized", {}, {"init": "exact"}, True, ["phase sums differ"]),
        ("equalized", {}, {}, False, ["a stored weight is needed"]),
        ("equalized", {"kernel_size": (4, 1)}, {}, True, ["axis 1", "1 of the 2 phases"]),
        ("equalized", {"dilation": 2}, {}, True, ["axis 0", "dilation 2"]),
        ("resize", {"dilation": 99_999}, {}, True, ["elements instead of"]),
        ("notch", {}, {"init": "random"}, True, ["keeps the trained weight"]),
        ("notch", {}, {"init": "exact"}, True, ["phase sums differ"]),
        ("notch", {}, {}, False, ["a stored weight is needed"]),
        ("notch", {"kernel_size": (4, 1)}, {}, True, ["axis 1", "1 of the 2 phases"]),
        ("notch", {"dilation": 99_999}, {}, True, ["elements instead of"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_say_what_to_do(name, spec, settings, readable, fragments):
    spec = ConvTransposeSpec.create(
        **{"in_channels": 3, "out_channels": 5, "kernel_size": (4, 4), "stride": 2} | spec
    )
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    refusal = form(name).settle(spec, Settings(**settings), (lambda: weight) if readable else None)
    assert isinstance(refusal, Refusal)
    text = refusal.sentence("decoder.up")
    assert text.startswith("decoder.up: ")
    assert all(fragment in text for fragment in fragments)


def test_form_names_are_unique():
    assert len({each.name for each in FORMS}) == len(FORMS) == 4


def test_settings_of_a_form_are_complete_after_settling():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    settled = form("resize").settle(spec, Settings(), lambda: weight)
    assert settled.settings == replace(Settings(), padding_mode="reflect", init="fit")


def test_only_weights_that_grow_much_and_are_large_are_refused():
    large = 2**27
    assert too_large(1, large) is None
    assert too_large(large, 8 * large) is None
    refusal = too_large(large, 8 * large + 1)
    assert refusal is not None
    assert "or 8 times the original" in refusal.needed
