"""How the outputs of a calibrated conversion come closer with the number of calibration samples.

Every fourth sample is held out, as in a distillation. Fits to a quarter, to half, and to all of the
others are compared with the original on the held-out ones. Each set is spread evenly over the samples,
and part of the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from deconvfix.attempt import attempt
from deconvfix.errors import OptionError
from deconvfix.extras import needs
from deconvfix.forms.base import FITTED_TO_DATA, Init
from deconvfix.frontends.registry import enter
from deconvfix.frontends.samples import calibration_inputs
from deconvfix.plan import Plan, Replaced
from deconvfix.report.curves import SamplesCurve, SamplesPoint
from deconvfix.request import Request

__all__ = ["measure_samples", "samples_curve"]

# Every so many samples are fitted to.
_STEPS = (4, 2, 1)
# So that a quarter of three quarters is more than one sample.
_FEWEST = 8


def samples_curve(
    model: Any,
    *,
    calibration: Iterable[Any] | str | None = None,
    example_inputs: Any | None = None,
    init: Init | None = None,
    plan: Plan | None = None,
    **options: Any,
) -> SamplesCurve:
    """Fits a model to some of the samples, three times.

    Args:
        model: A torch.nn.Module; it is not changed.
        calibration: As for `deconvfix.convert`, like what follows.
        example_inputs: Likewise.
        init: "calibrated" or "tuned". Tuned conversions are compared by the calibrated fit that they
            start from.
        plan: Says it instead of `init` and the other options.
        options: Further ones of `deconvfix.convert`.

    Returns:
        The PSNR of each fit on the held-out samples.

    Raises:
        OptionError: If there are fewer than 8 samples, or no layer is fitted to them.
    """
    request = Request.of(
        calibration=calibration, example_inputs=example_inputs, init=init, plan=plan, **options
    )
    return measure_samples(model, request)


def measure_samples(model: Any, request: Request) -> SamplesCurve:
    """The curve for a conversion as it was asked for; see `samples_curve`."""
    inits = [request.init]
    if request.plan is not None:
        inits = [layer.settings.init for layer in request.plan.replaced]
    if request.calibration is None or not set(inits) & set(FITTED_TO_DATA):
        raise OptionError(
            "samples-curve",
            "no layer is to be fitted to calibration samples",
            "the curve shows what more samples would bring",
            "Use it with init 'calibrated' or 'tuned' and calibration inputs, or omit it",
        )
    # Late, as torch is not needed for the errors above.
    with needs("torch", "samples-curve"):
        from deconvfix.frontends.torch.inputs import psnr_on
        from deconvfix.frontends.torch.samples import TorchSamples, cut, join, split

    kind = TorchSamples(request.example_inputs, request.seed)
    batches, _ = calibration_inputs(kind, request.calibration)
    samples, independent = cut(model, batches)
    if len(samples) < _FEWEST:
        raise OptionError(
            "samples-curve",
            f"there are {len(samples)} calibration samples"
            + ("" if independent else " (the model does not treat those of a batch independently)"),
            f"{_FEWEST} or more are needed to fit to some and compare on others",
            "Give more samples, or omit this",
        )
    # One set held out for all fits, so that their numbers compare.
    fitted, heldout = split(samples)
    frontend, model = enter(model)
    request = replace(
        request, init="calibrated", plan=_untuned(request.plan), inplace=False, verify=False
    )
    points = []
    for step in _STEPS:
        # Multiples of each other, so each set contains the one before.
        chosen = fitted[::step]
        batches = join(chosen) if independent else chosen
        after = attempt(frontend, model, replace(request, calibration=batches)).after
        psnr = psnr_on(model, after, join(heldout) if independent else heldout)
        points.append(SamplesPoint(len(chosen), psnr))
    return SamplesCurve(len(heldout), tuple(points))


def _untuned(plan: Plan | None) -> Plan | None:
    """The plan with the fits that a distillation would start from."""
    if plan is None:
        return None
    decisions = tuple(
        replace(decision, settings=replace(decision.settings, init="calibrated"))
        if isinstance(decision, Replaced) and decision.settings.init == "tuned"
        else decision
        for decision in plan.decisions
    )
    return replace(plan, decisions=decisions)
