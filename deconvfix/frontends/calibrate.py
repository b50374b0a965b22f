"""What calibrated fits share, whatever kind of model the layers are in: choices, checks, words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import decibels
from deconvfix.core.steps import PadMode
from deconvfix.errors import ModelError, OptionError, sentence
from deconvfix.fit.solve import Solved, bytes_needed
from deconvfix.fit.tuning import TUNED_FROM_WEIGHTS, Tuning
from deconvfix.forms import form
from deconvfix.forms.base import FITTED_TO_DATA, Settings
from deconvfix.plan import Decision, Options, Plan

__all__ = [
    "best_fit",
    "calibrated",
    "calibrated_decisions",
    "candidates",
    "check_flat",
    "check_held",
    "check_without_data",
    "fitted_decisions",
    "kept_bytes",
    "refuse_flat_inputs",
    "too_large",
]

# Of the original's outputs, in bytes, however much memory there is.
_MOST_KEPT = 2**30
_PAD_MODES: tuple[PadMode, ...] = ("reflect", "replicate", "zeros")


def fitted_decisions(plan: Plan) -> list[Decision]:
    """The layers of a plan whose weights are fitted to data."""
    return [
        each
        for each in plan.replaced
        if each.settings is not None and each.settings.init in FITTED_TO_DATA and not each.exact
    ]


def calibrated_decisions(plan: Plan) -> list[Decision]:
    """Those of them that a regression fits, be it as the start of a distillation."""
    return [
        each
        for each in fitted_decisions(plan)
        if not (each.settings and each.settings.init == "tuned" and each.form in TUNED_FROM_WEIGHTS)
    ]


def kept_bytes(memory: float) -> float:
    """How much of the original's outputs is kept; where it is not enough they are computed again.

    Args:
        memory: What a fit may take, in GiB.
    """
    return min(_MOST_KEPT, memory * 2**30)


def candidates(decision: Decision, choose_padding: bool) -> list[Settings]:
    """What is solved for a layer: each border of a resize-convolution, if it is to be chosen."""
    settings, spec = decision.settings, decision.spec
    assert settings is not None
    assert spec is not None
    if choose_padding and decision.form == "resize" and max(spec.stride) > 1:
        return [replace(settings, padding_mode=mode) for mode in _PAD_MODES]
    return [settings]


def too_large(
    decision: Decision, choose_padding: bool, memory: float, *, flat: bool = False
) -> str | None:
    """Why a layer is not fitted to data: a sentence, or None if `memory` (in GiB) is enough for it."""
    spec = decision.spec
    assert spec is not None
    assert decision.form is not None
    needed = 0
    for settings in candidates(decision, choose_padding):
        design = form(decision.form).design(spec, settings)
        assert design is not None
        needed += bytes_needed(design, spec, any_kernel=flat)
    if needed <= memory * 2**30:
        return None
    return sentence(
        decision.name or "(model)",
        f"it keeps its fit to the weights, because its regression takes {needed / 2**30:.3g} GiB",
        f"at most {memory:g} GiB are allowed (`memory`)",
        "Allow more, or let its kernel grow less",
    )


def best_fit(
    decision: Decision, fits: Iterable[tuple[Settings, Solved]]
) -> tuple[Settings, Solved]:
    """The candidate with the smallest error.

    Raises:
        ModelError: If the data were not finite.
    """
    settings, solved = min(fits, key=lambda each: each[1].error)
    if not np.isfinite(solved.kernel).all():
        raise ModelError(
            decision.name or "(model)",
            "its inputs or outputs are not finite on some calibration inputs",
            "finite values are needed to fit it",
            "Leave those inputs out",
        )
    return settings, solved


def check_held(decision: Decision, rounded: NDArray[np.float64], dtype: str) -> None:
    """Checks a fit that was rounded to what a file can hold.

    Raises:
        ModelError: If that is infinite.
    """
    if not np.isfinite(rounded).all():
        raise ModelError(
            decision.name,
            f"the fit to the calibration inputs is larger than {dtype} can hold",
            "finite weights are needed",
            "Convert the model to float32 first, or use init 'fit'",
        )


def calibrated(decision: Decision, settings: Settings, solved: Solved) -> Decision:
    """The decision with what was chosen and measured."""
    border = f", {settings.padding_mode} border" if decision.form == "resize" else ""
    strength = "" if settings.strength == 1 else f", strength {settings.strength:g}"
    snr_db = -decibels(math.sqrt(solved.error))
    reason = f"calibrated, {snr_db:.1f} dB of the layer's own output{border}{strength}"
    return replace(decision, settings=settings, reason=reason)


def check_flat(options: Options, tuning: Tuning | None) -> None:
    """Where the grid may stay on some inputs, there must be kernels that make it.

    Raises:
        OptionError: If there are none.
    """
    if tuning is not None and tuning.train_all:
        raise OptionError(
            "flat_inputs",
            "all weights are trained",
            "what the layers get on these inputs must stay as it is",
            "Leave out `train_all`, or `flat_inputs`",
        )
    if options.to != "equalized" or options.init not in FITTED_TO_DATA or options.strength != 1:
        raise OptionError(
            "flat_inputs",
            f"the form is {options.to!r}, init {options.init!r} and strength {options.strength:g}",
            "a grid that stays on some inputs is for 'equalized', fitted to data, with strength 1",
            "Change these, or leave out `flat_inputs`",
        )


def refuse_flat_inputs(flat: object) -> None:
    """For kinds of models whose layers cannot be watched on inputs of their own.

    Raises:
        OptionError: If there are flat inputs.
    """
    if flat is not None:
        raise OptionError(
            "flat_inputs",
            "the model is a program or an ONNX model",
            "a grid that stays on some inputs is for torch modules",
            "Convert the module before it is exported, or leave out `flat_inputs`",
        )


def check_without_data(options: Options) -> None:
    """Checks what a pass over a graph is asked for: it has no inputs to fit to.

    Raises:
        OptionError: If it would need some.
    """
    if options.init in FITTED_TO_DATA:
        raise OptionError(
            "init",
            f"it is {options.init!r}, and a pass has no inputs to fit to",
            "one of 'exact', 'fit', 'random' is needed",
            "Use deconvfix.convert with calibration inputs, or leave `init` out",
        )
