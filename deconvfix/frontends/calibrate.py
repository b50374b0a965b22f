"""Calibrated fits: each converted layer regressed on what the original layer computes.

One layer after the other, in the order in which they run, whatever kind of model they are in. The inputs of
a layer are those that it gets in the converted model, whose earlier layers are fitted already; the targets
are the outputs of the original layer. Only second moments of both are kept (`fit.moments`): they are sums
over calls, samples and processes. A kind of model gives what `Fittable` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import decibels
from deconvfix.core.steps import PadMode
from deconvfix.errors import ModelError, OptionError, sentence
from deconvfix.fit.design import Design
from deconvfix.fit.moments import Arrays, Moments
from deconvfix.fit.regression import Solved, bytes_needed, solve
from deconvfix.fit.tuning import Tuning
from deconvfix.forms.base import FITTED_TO_DATA, Init, Settings
from deconvfix.frontends.base import FitsToData, Frontend
from deconvfix.frontends.samples import nothing_to_fit_to
from deconvfix.parity.progress import step_by_step
from deconvfix.plan import Options, Plan, Replaced

__all__ = [
    "Fittable",
    "PlanInProgress",
    "UnseenError",
    "calibrate",
    "calibrated_decisions",
    "check_flat",
    "check_stored",
    "check_without_data",
    "fitted_decisions",
    "fitter_of",
    "kept_bytes",
    "refuse_flat_inputs",
]

# Of the original's outputs, in bytes, however much memory there is.
_MOST_KEPT = 2**30
_PAD_MODES: tuple[PadMode, ...] = ("reflect", "replicate", "zeros")
Array = NDArray[np.float64]


class UnseenError(Exception):
    """Why a layer cannot be fitted to data.

    Args:
        found: A clause: what stands in the way.
        todo: What the user can do about it.
    """

    def __init__(self, found: str, todo: str) -> None:
        super().__init__(found)
        self.found = found
        self.todo = todo


class Fittable(Protocol):
    """What a kind of model gives for its layers to be fitted to data."""

    @property
    def arrays(self) -> Arrays:
        """The library of the samples."""
        ...

    @property
    def any_size(self) -> bool:
        """Whether calls of a layer may have an output_size of their own."""
        ...

    def order(self, names: Sequence[str]) -> Mapping[str, int]:
        """How often each of the layers runs on a batch, in the order of their first calls."""
        ...

    def trained(self, decision: Replaced) -> tuple[Array, Array | None]:
        """The weight of the original layer, (C_in, C_out / groups, *kernel_size), and its bias, (C_out,).

        Raises:
            UnseenError: If one of them cannot be set to fitted values.
        """
        ...

    def seen(self, decision: Replaced) -> Iterator[tuple[Any, Any]]:
        """Inputs of a layer in the converted model so far, and its outputs in the original, call by call.

        Raises:
            UnseenError: If they cannot be seen.
        """
        ...

    def directions(self, decision: Replaced) -> Array | None:
        """Directions of the input channels along which alone there must be no grid; None: all."""
        ...

    def put(self, decision: Replaced, solved: Solved) -> Replaced:
        """Sets a layer's new kernel and bias; `decision` has the settings that were chosen.

        Returns:
            The decision, with the fitted weights where they travel in the plan.
        """
        ...


def calibrate(
    model: Fittable, plan: Plan, *, choose_padding: bool, memory: float, flat: bool = False
) -> tuple[Plan, list[str]]:
    """Fits the layers of a plan to data.

    Args:
        model: What the kind of model gives.
        plan: What is converted.
        choose_padding: Choose the border of resize-convolutions by the measured error.
        memory: For the regression of a layer, in GiB.
        flat: Whether layers are fitted along some directions only (`Fittable.directions`).

    Returns:
        The plan with what was chosen, fitted and measured, and notes on layers that are not fitted.
    """
    decisions = {decision.name: decision for decision in calibrated_decisions(plan)}
    notes = []
    # What takes too much memory keeps its fit to the weights, and is no reason to run the model.
    for name, decision in list(decisions.items()):
        note = _too_large(decision, choose_padding, memory, flat=flat)
        if note is not None:
            notes.append(note)
            del decisions[name]
    changed: dict[str, Replaced] = {}
    # In the order in which they run, so that each layer sees what fitted layers give.
    counts = model.order(list(decisions))
    for name, count in step_by_step("Fitting layers", list(counts.items())):
        try:
            # A layer that runs several times sees its own outputs: the second sweep sees the fitted ones.
            for _ in range(2 if count > 1 else 1):
                changed[name] = _fit(model, decisions[name], choose_padding)
        except UnseenError as error:
            notes.append(
                sentence(
                    name or "(model)",
                    f"it keeps its fit to the weights, because {error.found}",
                    "only a layer whose inputs, outputs and weights can be seen and set is fitted",
                    error.todo,
                )
            )
    notes += [
        f"{name} did not run on the calibration inputs: it keeps its fit to the weights."
        for name in decisions
        if name not in counts
    ]
    decided = tuple(changed.get(decision.name, decision) for decision in plan.decisions)
    return replace(plan, decisions=decided), notes


def _fit(model: Fittable, decision: Replaced, choose_padding: bool) -> Replaced:
    """Fits one layer, and puts the fit into the model."""
    spec = decision.spec
    weight, bias = model.trained(decision)
    candidates = [
        (settings, _moments(model, decision, settings))
        for settings in _candidates(decision.apart(), choose_padding)
    ]
    # One pass over the data for all candidates, as each sample may cost a run of two models.
    for x, y in model.seen(decision):
        for _, moments in candidates:
            try:
                moments.add(x, y)
            except ValueError as error:
                todo = "Report this as a bug with the layer's attributes"
                raise UnseenError(str(error), todo) from error
    directions = model.directions(decision)
    settings = decision.apart().settings
    # Along the directions the fit has equal phase sums, and elsewhere it may have any kernel.
    if directions is not None:
        settings = replace(settings, strength=0.0)  # any kernel may be the start
    start = decision.target.fit(spec, settings, weight)
    fits = []
    for chosen, moments in candidates:
        moments.gather()
        fits.append((chosen, solve(moments, start, bias, directions)))
    # Held-out samples judge, so that a border is not chosen by what it overfits.
    best, solved = min(fits, key=lambda fit: fit[1].error)
    # The solver gives NaN where the data are not finite.
    if not np.isfinite(solved.kernel).all():
        raise ModelError(
            decision.name or "(model)",
            "its inputs or outputs are not finite on some calibration inputs",
            "finite values are needed to fit it",
            "Leave those inputs out",
        )
    best = replace(best, fold=decision.settings.fold)
    fitted = _calibrated(decision, best, solved)
    if decision.target.folds:
        solved = replace(solved, kernel=decision.target.joined(spec, best, solved.kernel))
    return model.put(fitted, solved)


def _moments(model: Fittable, decision: Replaced, settings: Settings) -> Moments:
    """Sums for one way to fit a layer, empty still."""
    spec = decision.spec
    if model.any_size:
        return Moments(spec, partial(_design_of, decision, settings), model.arrays)
    return Moments(spec, _design_of(decision, settings, spec), model.arrays)


def _design_of(decision: Replaced, settings: Settings, spec: Any) -> Design:
    design = decision.target.design(spec, settings)
    assert design is not None, "only forms that are fitted have moments"
    return design


def fitted_decisions(plan: Plan) -> list[Replaced]:
    """The layers of a plan whose weights are fitted to data."""
    return [
        decision
        for decision in plan.replaced
        if decision.settings.init in FITTED_TO_DATA and not decision.exact
    ]


def calibrated_decisions(plan: Plan) -> list[Replaced]:
    """Those of them that a regression fits, be it as the start of a distillation."""
    return [
        decision
        for decision in fitted_decisions(plan)
        if not (decision.settings.init == "tuned" and decision.target.tunes_from_weights)
    ]


def kept_bytes(memory: float) -> float:
    """How much of the original's outputs is kept; where it is not enough they are computed again.

    Args:
        memory: What a fit may take, in GiB.
    """
    return min(_MOST_KEPT, memory * 2**30)


def check_stored(decision: Replaced, stored: Array, dtype: str) -> None:
    """Checks a fit that was rounded to the dtype that the model stores.

    Raises:
        ModelError: If the dtype cannot hold it.
    """
    if not np.isfinite(stored).all():
        raise ModelError(
            decision.name,
            f"the fit to the calibration inputs is larger than {dtype} can hold",
            "finite weights are needed",
            "Convert the model to float32 first, or use init 'fit'",
        )


class PlanInProgress:
    """A plan while its layers are fitted, for kinds whose converted layers are written from the plan.

    Args:
        plan: What is converted.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._order: list[str] = []
        self._fitted: dict[str, Replaced] = {}

    def start(self, names: Sequence[str]) -> None:
        """Sets the layers that are to be fitted, in the order in which they run."""
        self._order = list(names)

    def put(self, decision: Replaced) -> None:
        """Adds a fitted layer."""
        self._fitted[decision.name] = decision

    def before(self, name: str) -> Plan:
        """What is converted when a layer's turn comes: everything but it and those that follow."""
        later = set(self._order[self._order.index(name) :])
        decisions = tuple(
            self._fitted.get(decision.name, decision)
            for decision in self._plan.decisions
            if decision.name not in later
        )
        return replace(self._plan, decisions=decisions)


def _candidates(decision: Replaced, choose_padding: bool) -> list[Settings]:
    """What is solved for a layer: each border, if the form leaves it open and it is to be chosen."""
    settings = decision.settings
    # Without a stride there is nothing to upsample, and the border stays as trained.
    if choose_padding and decision.target.chooses_border and max(decision.spec.stride) > 1:
        return [replace(settings, padding_mode=mode) for mode in _PAD_MODES]
    return [settings]


def _too_large(
    decision: Replaced, choose_padding: bool, memory: float, *, flat: bool = False
) -> str | None:
    """Why a layer is not fitted to data: a sentence, or None if `memory` (in GiB) is enough for it."""
    needed = sum(
        bytes_needed(_design_of(decision, settings, decision.spec), decision.spec, any_kernel=flat)
        for settings in _candidates(decision, choose_padding)
    )
    if needed <= memory * 2**30:
        return None
    return sentence(
        decision.name or "(model)",
        f"it keeps its fit to the weights, because its regression takes {needed / 2**30:.3g} GiB",
        f"at most {memory:g} GiB are allowed (`memory`)",
        "Allow more, or let its kernel grow less",
    )


def _calibrated(decision: Replaced, settings: Settings, solved: Solved) -> Replaced:
    """The decision with what was chosen and measured."""
    border = f", {settings.padding_mode} border" if decision.target.chooses_border else ""
    strength = "" if settings.strength == 1 else f", strength {settings.strength:g}"
    snr_db = -decibels(math.sqrt(solved.error))
    reason = (
        f"calibrated; SNR {snr_db:.1f} dB against the original layer's output{border}{strength}"
    )
    macs = decision.target.compile(decision.spec, settings).macs_per_position
    if decision.target.folds:
        reason += decision.target.words_of_fold(decision.spec, settings)
    return replace(decision, settings=settings, reason=reason, macs_after=macs)


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
    fitted = options.init in FITTED_TO_DATA and options.strength == 1
    if not options.form.keeps_layer or not fitted:
        raise OptionError(
            "flat_inputs",
            f"the form is {options.to!r}, init {options.init!r} and strength {options.strength:g}",
            "a grid that stays on some inputs is for 'equalized', fitted to data, with strength 1",
            "Change these, or leave out `flat_inputs` (--flat)",
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
            "Convert the module before it is exported, or leave out `flat_inputs` (--flat)",
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


def fitter_of(
    frontend: Frontend, calibration: object, inits: Collection[Init | None]
) -> FitsToData:
    """The front end, if it can fit layers to inputs as is asked for, and if there are some.

    Raises:
        OptionError: If it cannot, or there are none.
    """
    if not isinstance(frontend, FitsToData):
        raise OptionError(
            "init",
            "the layers of this kind of model cannot be fitted to inputs",
            "a torch.nn.Module, a program or an ONNX model is needed",
            "Convert the module before it is traced",
        )
    if not set(inits) <= set(frontend.fits):
        raise OptionError(
            "init",
            "it is 'tuned', and the model is a program or an ONNX model",
            "a distillation trains a torch.nn.Module",
            "Use init 'calibrated', or convert the module before it is exported",
        )
    if calibration is None:
        raise nothing_to_fit_to("there are no calibration inputs")
    return frontend
