"""How much of the grid to take away: what each strength does to a network.

The layers are fitted to three quarters of the calibration samples, and the network's outputs are held
against the original's on the others. The ripple is that of the answer to a constant input, the mean of
such samples, as `deconvfix.inspect` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from deconvfix.attempt import attempt
from deconvfix.conversion import inspect
from deconvfix.core.decibels import LOWEST_DB
from deconvfix.core.options import known
from deconvfix.errors import OptionError
from deconvfix.fit.regression import MEMORY
from deconvfix.forms import FORMS
from deconvfix.forms.base import FITTED_TO_DATA, Init, Settings
from deconvfix.frontends.base import Frontend
from deconvfix.frontends.calibrate import fitter_of
from deconvfix.frontends.registry import enter
from deconvfix.frontends.samples import calibration_inputs
from deconvfix.frontends.torch.diagnose import probe_module
from deconvfix.frontends.torch.inputs import Inputs, psnr_on
from deconvfix.frontends.torch.samples import TorchSamples, cut, join, split
from deconvfix.grid.flat_field import network_answers
from deconvfix.report.curves import StrengthCurve, StrengthPoint
from deconvfix.request import Request

__all__ = ["STRENGTHS", "strength_curve"]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# More samples say nothing new about the answer to a constant.
_FLAT_SAMPLES = 8


def strength_curve(
    model: Any,
    *,
    calibration: Iterable[Any] | str,
    to: str = "equalized",
    strengths: Iterable[float] = STRENGTHS,
    example_inputs: Any | None = None,
    init: Init = "calibrated",
    grow: int = 0,
    reach: int = 4,
    memory: float = MEMORY,
    seed: int = 0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] | Callable[[str], bool] = (),
) -> StrengthCurve:
    """Fidelity against ripple, over the strength of a form.

    Args:
        model: A torch.nn.Module or GraphModule. It is not changed.
        calibration: As for `deconvfix.convert`. Every fourth sample is held out, to measure the fidelity.
        to: "equalized" or "notch".
        strengths: From 0 (the original) to 1 (free of the grid); each costs a fit.
        example_inputs: As for `deconvfix.convert`.
        init: "fit" (weights alone) or "calibrated". "tuned" stands for "calibrated": a distillation for
            each point would take too long.
        grow: As for `deconvfix.convert`.
        reach: As for `deconvfix.convert`.
        memory: As for `deconvfix.convert`.
        seed: Of inputs that are drawn.
        include: Glob patterns on layer names; only matching layers are converted.
        exclude: Glob patterns on layer names to keep, or a predicate.

    Returns:
        The curve. PSNR on samples that were not fitted to is lower than on those that were, and
        `deconvfix.convert` fits to all of them.

    Raises:
        OptionError: An option has an unknown value, or there is nothing to fit to.
        ModelError: The model or its inputs cannot be used.
    """
    known("to", to, tuple(form.name for form in FORMS if form.has_strength))
    known("init", init, ("fit", *FITTED_TO_DATA))
    request = Request.of(
        to=to,
        calibration=calibration,
        example_inputs=example_inputs,
        init="fit" if init == "fit" else "calibrated",
        grow=grow,
        reach=reach,
        memory=memory,
        seed=seed,
        include=include,
        exclude=exclude,
        verify=False,
    )
    chosen = _checked(strengths)
    frontend, model = enter(model)
    if not isinstance(model, nn.Module):
        raise OptionError(
            "model",
            f"it is a {type(model).__name__}",
            "a curve is measured on a torch.nn.Module",
            "Convert it at some strengths, or measure the module before it is exported",
        )
    # For its errors, before anything is computed.
    fitter_of(frontend, calibration, {init} & {*FITTED_TO_DATA})
    original = frontend.prepare(model, example_inputs, inplace=False).eval()
    batches, _ = calibration_inputs(TorchSamples(example_inputs, seed), calibration)
    samples, independent = cut(original, batches)
    fitted, heldout = split(samples)
    note = _what_was_measured(init, len(samples), len(heldout))
    # A batch for the constant's level, where samples may be joined.
    flat = join(samples[:_FLAT_SAMPLES])[0] if independent else samples[0]
    if independent:
        size = math.ceil(len(samples) / len(batches))  # no more memory than the batches need
        fitted, heldout = _joined(fitted, size), _joined(heldout, size)
    points = _points(frontend, original, request, chosen, fitted, heldout, flat)
    return StrengthCurve(tuple(points), request.init or "fit", (note,))


def _checked(strengths: Iterable[float]) -> list[float]:
    """The strengths in order, each once."""
    chosen = sorted({float(Settings(strength=strength).strength) for strength in strengths})
    if not chosen:
        raise OptionError(
            "strengths",
            "there are none",
            "a curve has a point for each strength",
            "Give some numbers from 0 to 1",
        )
    return chosen


def _points(
    frontend: Frontend,
    original: nn.Module,
    request: Request,
    strengths: Iterable[float],
    fitted: Sequence[Inputs],
    heldout: Sequence[Inputs],
    flat: Inputs,
) -> list[StrengthPoint]:
    """One point for each strength.

    Args:
        frontend: Of torch modules.
        original: The model.
        request: The conversion, at any strength.
        strengths: Those to measure.
        fitted: Samples to fit to.
        heldout: Samples to compare on.
        flat: Samples whose mean is the constant input.
    """
    periods = {output.index: output.period for output in inspect(original, flat).outputs}
    # At strength 0 nothing changes, and the ripple is that of the original.
    whole = replace(request, strength=1.0, init="fit", calibration=None)
    unchanged = [before for before, _ in attempt(frontend, original, whole).ripples.values()]
    points = []
    for strength in strengths:
        asked = replace(request, strength=strength, calibration=fitted, seed=0)
        tried = attempt(frontend, original, asked)
        psnr = psnr_on(original, tried.after, heldout)
        ripples = [after for _, after in tried.ripples.values()] if strength else unchanged
        points.append(
            StrengthPoint(
                strength=strength,
                psnr_db=math.inf if psnr == -LOWEST_DB else psnr,
                network_ripple_db=_network_ripple(tried.after, flat, periods),
                layer_ripple_db=max(ripples, default=LOWEST_DB),
            )
        )
    return points


def _what_was_measured(init: Init, samples: int, heldout: int) -> str:
    """What was measured, in a sentence."""
    seen = f"compared with the original on {heldout} calibration samples"
    if init == "fit":
        return f"Fits to the weights alone, {seen}."
    fits = "Calibrated fits (tuning moves each closer)" if init == "tuned" else "Calibrated fits"
    if heldout < samples:
        return f"{fits}, {seen} that were held out."
    return f"{fits}, {seen} that they were fitted to: there are too few to hold some out."


def _joined(samples: Sequence[Inputs], size: int) -> list[Inputs]:
    """Batches of at most `size` samples."""
    parts = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
    return [batch for part in parts for batch in join(part)]


def _network_ripple(
    model: nn.Module, example: Inputs, periods: Mapping[int, tuple[int, ...]]
) -> float | None:
    """The largest of the outputs' answers to a constant input."""
    probe = probe_module(model, example, ())
    if probe.run is None:
        return None
    answers = network_answers(probe.run, probe.inputs, periods)
    return max((answer.ripple_db for answer in answers.values()), default=None)
