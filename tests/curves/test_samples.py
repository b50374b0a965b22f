"""Fidelity over the number of samples."""

import pytest
import torch

import deconvfix
from deconvfix.errors import OptionError
from deconvfix.plan import Plan
from tests.support.fidelity import convert, decoder
from tests.support.networks import smooth_batches


def test_more_samples_come_closer():
    """Measured on samples that no fit has seen; sets are nested and spread over what there is."""
    model = decoder()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batches = smooth_batches((4, 3, 8, 6), count=8)
    curve = deconvfix.samples_curve(model, calibration=batches, init="calibrated", to="equalized")
    assert curve.heldout == 8
    assert [each.samples for each in curve.points] == [6, 12, 24]
    psnrs = [each.psnr_db for each in curve.points]
    assert psnrs == sorted(psnrs)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_fit_is_closer_on_samples_that_it_has_seen(monkeypatch):
    """The control: compared on the fitted samples, three of them would look better than they are."""
    batches = smooth_batches((4, 3, 4, 4), count=4)
    options = {"calibration": batches, "init": "calibrated", "to": "equalized"}
    honest = deconvfix.samples_curve(decoder(), **options)
    monkeypatch.setattr(
        "deconvfix.frontends.torch.samples.split", lambda each: (list(each[::3]), list(each[::3]))
    )
    flattering = deconvfix.samples_curve(decoder(), **options)
    assert flattering.points[-1].psnr_db > honest.points[-1].psnr_db


def test_a_recipe_is_compared_by_its_calibrated_fits(monkeypatch):
    batches = smooth_batches((4, 3, 5, 6))
    plan = convert(decoder(), init="tuned", tuning=deconvfix.Tuning(steps=1)).plan
    assert {each.settings.init for each in plan.replaced} == {"tuned"}

    def no_tuning(*args):
        raise AssertionError("a distillation takes long")

    monkeypatch.setattr("deconvfix.frontends.torch.frontend.tune", no_tuning)
    by_plan = deconvfix.samples_curve(
        decoder(), calibration=batches, plan=Plan.from_json(plan.to_json()), seed=0
    )
    by_name = deconvfix.samples_curve(decoder(), calibration=batches, init="tuned", to="equalized")
    assert by_plan == by_name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "no layer is to be fitted to calibration samples"),
        ({"init": "calibrated"}, "no layer is to be fitted to calibration samples"),
        ({"init": "fit", "calibration": "normal"}, "no layer is to be fitted"),
        (
            {"init": "calibrated", "calibration": [torch.ones(7, 3, 5, 5)]},
            "there are 7 calibration",
        ),
    ],
)
def test_a_curve_needs_fits_to_samples(options, text):
    with pytest.raises(OptionError, match=text) as caught:
        deconvfix.samples_curve(decoder(), to="equalized", **options)
    assert caught.value.todo
