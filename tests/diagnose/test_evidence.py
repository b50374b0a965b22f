"""Evidence for the report: what is drawn is what was measured."""

import numpy as np
import pytest
import torch
from torch import nn

from deconvfix.diagnose import evidence as shown
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.plan import Plan
from tests.support.fidelity import convert, decoder


@pytest.mark.parametrize("to", ["equalized", "resize"])
def test_the_flat_picture_is_what_was_measured(to):
    """Also of a generator, whose constant input of one pixel is no flat field: a digit came out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 4), decoder()).eval()
    latent = (torch.randn(4, 3, 1, 1),)
    got = convert(model, to=to, calibration="normal", example_inputs=latent)
    [output] = got.report.fidelity.outputs
    drawn = shown.gather(FRONTEND, model, got.model, got.plan, latent, (output,))
    for tiled, measured in (
        (drawn.flat.before, output.flat_before),
        (drawn.flat.after, output.flat_after),
    ):
        assert tiled.shape == (2, 32, 32)
        apart = (tiled.max((1, 2)) - tiled.min((1, 2))).max()
        assert apart <= measured.apart, "the first of four samples, and the worst of all"
    assert len(drawn.spectra) == 2 or not output.tones
    assert np.ptp(drawn.flat.after[0]) < 1e-4 < np.ptp(drawn.flat.before[0])


def test_python_gets_the_page_that_the_command_line_writes():
    """Flat fields, outputs, spectra and kernels on request; without, the page has no pictures."""
    torch.manual_seed(0)
    model, x = decoder(), torch.rand(4, 3, 24, 24)
    pages = []
    for pictures in (False, True):
        got = convert(model, calibration=[(x,)], pictures=pictures)
        pages.append(got.report.to_html())
        assert (got.report.evidence is not None) == pictures
    assert [each.count("data:image/") > 6 for each in pages] == [False, True]
    assert {each.layer for each in got.report.evidence.kernels} == {
        each.name for each in got.plan.replaced
    }
    program = torch.export.export(decoder(), (x,))
    same = convert(program, calibration=[(x,)], pictures=True)
    assert same.report.to_html().count("data:image/") > 4


def test_a_model_without_layers_is_not_drawn():
    model = nn.Conv2d(3, 2, 3)
    plan, inputs = Plan("equalized", ()), (torch.rand(1, 3, 8, 8),)
    assert shown.gather(FRONTEND, model, model, plan, inputs, ()) is None
