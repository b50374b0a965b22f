"""One network as a module, a program and an ONNX file: the same decisions, kernels, verdicts and words.

`tests.support.kinds` says what the kinds do not share by their nature; every other difference fails.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.core.decibels import decibels_in_words
from deconvfix.errors import DeconvfixError, ModelError
from deconvfix.parity.bounds import LIMIT
from tests.support.kinds import (
    COMPARED,
    EPS,
    FITTED,
    FORMS,
    KINDS,
    NETWORKS,
    converted,
    copied,
    differences,
    example,
    kinds_for,
    kinds_of,
    output_of,
    outputs_agree,
    proof_told,
    rounding,
    scale_a_weight,
)

# torch's own decomposition pass warns about its own tree code.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")


def cases():
    return [(name, form) for name in NETWORKS for form in FORMS]


@pytest.mark.parametrize(("name", "form"), cases())
def test_kinds_agree(name, form):
    conversions = {kind: converted(name, form, kind) for kind in kinds_for(name, form)}
    assert differences(name, conversions) == []
    program = conversions["program"]
    bound = rounding(name, form, program.model, len(program.plan.decisions))
    assert outputs_agree(name, [conversion.model for conversion in conversions.values()], bound)


@pytest.mark.parametrize("form", FITTED)
@pytest.mark.parametrize("name", ["tied weights", "twice"])
def test_a_file_is_converted_as_the_network_that_shares_nothing(name, form):
    """What `CANNOT` leaves out of the contract: the file's layers get kernels of their own."""
    shared = kinds_of(name)["module"]
    layers = [shared.a, shared.b] if name == "tied weights" else [shared.up] * 2
    between = nn.ReLU() if name == "tied weights" else nn.Identity()
    alone = nn.Sequential(copy.deepcopy(layers[0]), between, copy.deepcopy(layers[1]))
    module = deconvfix.convert(alone, example_inputs=(example(name),), **FORMS[form])
    file = converted(name, form, "onnx")
    assert differences("unshared", {"module": module, "onnx": file}) == []
    program = torch.export.export(module.model, (example(name),))
    bound = rounding(name, form, program, 2)
    assert outputs_agree(name, [module.model, file.model], bound)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("signal", "subpixel"),
        ("signal", "equalized"),
        *((name, form) for name in ("signal", "bilinear") for form in ("nearest", "linear")),
        ("signal", "notch"),
        ("empty phases", "equalized"),
    ],
)
def test_proofs_say_the_same(name, form):
    wanted, *others = (proof_told(converted(name, form, kind)) for kind in KINDS)
    assert others == [wanted, wanted]


@pytest.mark.parametrize("form", FORMS)
def test_modules_and_programs_are_compared_in_the_same_dtype(form):
    """ONNX Runtime has its own: it runs no float64 on a CPU."""
    module, program = (converted("signal", form, kind) for kind in ("module", "program"))
    assert program.report.parity.dtype == module.report.parity.dtype


@pytest.mark.parametrize("form", ["equalized", "notch"])
def test_a_grid_is_gone_in_the_same_words(form):
    """-150 dB of a stored kernel are not "none"."""
    ripples = [converted("signal", form, kind).report.fidelity.ripple_db_after for kind in KINDS]
    assert (
        len({decibels_in_words(ripple) == decibels_in_words(-math.inf) for ripple in ripples}) == 1
    )


def test_the_grid_of_a_layer_that_runs_twice_is_measured():
    module, file = (converted("twice", "nearest", kind) for kind in ("module", "onnx"))
    measured = [found.report.fidelity.network_ripple_db_before for found in (file, module)]
    assert measured[0] is not None
    assert measured[1] == pytest.approx(measured[0], abs=0.1)


@pytest.mark.parametrize("kind", ["module", "program"])
def test_a_label_map_is_exported(kind, tmp_path):
    model = kinds_of("labels")[kind]
    report = deconvfix.export_onnx(model, tmp_path / "labels.onnx", (example("labels"),))
    assert report.parity.ok


# --- calibrated fits ----------------------------------------------------------------------------

SAMPLES = 6


def calibrated(name, form, kind, disturbance=0.0):
    """A fit to samples that are off by so much of themselves, at random."""
    samples = [example(name, seed) for seed in range(SAMPLES)]
    generator = torch.Generator().manual_seed(7)
    moved = [x * (1 + disturbance * torch.randn(x.shape, generator=generator)) for x in samples]
    return deconvfix.convert(
        kinds_of(name)[kind],
        example_inputs=(example(name),),
        calibration=[(x,) for x in moved],
        verify=disturbance == 0,
        **{**FORMS[form], "init": "calibrated"},
    )


def fit_rounding(name, form, conversions):
    """How far rounding may move the outputs of a network that is fitted to samples.

    As `parity` says for a whole model: the inputs are moved by one eps at random, and what that does
    to the result, condition of the normal equations included, is what one rounding explains. The limit
    is ten times that, and the rounding of the run itself.
    """
    fitted = conversions["module"].model
    moved = calibrated(name, form, "module", disturbance=EPS).model
    inputs = [example(name, seed) for seed in COMPARED]
    departures = [np.abs(output_of(moved, x) - output_of(fitted, x)).max() for x in inputs]
    return LIMIT * float(max(departures)) + rounding(name, form, conversions["program"].model, 2)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("signal", form) for form in ("nearest", "equalized", "notch")),
        ("picture", "equalized"),
        ("open sizes", "nearest"),
    ],
)
def test_calibrated_fits_agree(name, form):
    conversions = {kind: calibrated(name, form, kind) for kind in KINDS}
    assert differences(name, conversions) == []
    bound = fit_rounding(name, form, conversions)
    fitted = [conversion.model for conversion in conversions.values()]
    assert outputs_agree(name, fitted, bound)
    tampered = copied(fitted[0])
    scale_a_weight(tampered, 1.01)
    assert not outputs_agree(name, [fitted[1], tampered], bound)


# --- errors -------------------------------------------------------------------------------------


def error_of(kind, options):
    """Class and words of the error; a layer has another name in each kind."""
    model, inputs = kinds_of("picture")[kind], (example("picture"),)
    with pytest.raises(DeconvfixError) as raised:
        deconvfix.convert(model, **{"example_inputs": inputs} | options)
    error = raised.value
    return type(error), error.found, error.needed


ERRORS = {
    "unknown layer": {"include": "nothing"},
    "refused": {"to": "resize", "init": "exact", "strict": True},
    "no samples": {"to": "resize", "init": "calibrated"},
    "empty samples": {"to": "resize", "init": "calibrated", "calibration": []},
    "samples not finite": {
        "to": "equalized",
        "init": "calibrated",
        "calibration": [(math.nan * torch.ones(2, 4, 6, 5),)],
    },
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_the_same(case):
    wanted, *others = (error_of(kind, ERRORS[case]) for kind in KINDS)
    assert others == [wanted, wanted]
    assert wanted != error_of("module", {"to": "unknown"})


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_do_not_fit_are_a_model_error(kind):
    """The words are those of the runtime."""
    model = kinds_of("picture")[kind]
    with pytest.raises(ModelError):
        deconvfix.convert(model, example_inputs=(torch.ones(2, 3, 6, 5),))


# --- what the comparisons must notice -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_one_weight_off_by_a_hundredth_is_noticed(form, kind):
    """In the converted model by its outputs; in the original by what is decided and measured too."""
    conversions = {one: converted("signal", form, one) for one in KINDS}
    models = {name: copied(found.model) for name, found in conversions.items()}
    program = conversions["program"]
    bound = rounding("signal", form, program.model, 2)
    scale_a_weight(models[kind], 1.01)
    assert not outputs_agree("signal", list(models.values()), bound)
    if form != "subpixel":
        original = copied(kinds_of("signal")[kind])
        scale_a_weight(original, 1.01)
        other = deconvfix.convert(original, example_inputs=(example("signal"),), **FORMS[form])
        assert differences("signal", {"first": conversions["module"], kind: other}) != []


def test_each_difference_is_noticed():
    wanted = converted("signal", "nearest", "module")
    report = wanted.report

    def reported(**changes):
        return replace(wanted, report=replace(report, **changes))

    def reasoned(reason):
        found = tuple(replace(decided, reason=reason) for decided in wanted.plan.decisions)
        return replace(wanted, plan=replace(wanted.plan, decisions=found))

    farther = replace(report.fidelity, psnr_db=report.fidelity.psnr_db + 1e-3)
    rippling = tuple(replace(layer, ripple_db_after=-99.0) for layer in report.layers)
    others = {
        "decisions": reasoned("other"),
        "verdict": reported(parity=replace(report.parity, problems=("other",))),
        "notes": reported(notes=(*report.notes, "other")),
        "samples": reported(fidelity=replace(report.fidelity, psnr_samples=9)),
        "ripples": reported(layers=rippling),
        "distance": reported(fidelity=farther),
    }
    for what, other in others.items():
        (found,) = differences("signal", {"module": wanted, "other": other})
        assert found.startswith(f"other: {what}")
    fits = {number: reasoned(f"calibrated, {number} dB") for number in (4.1, 4.2, 4.3)}
    assert differences("signal", {"module": fits[4.1], "other": fits[4.2]}) == []
    assert differences("signal", {"module": fits[4.1], "other": fits[4.3]}) != []
