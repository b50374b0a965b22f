"""Everything that a conversion is asked for, besides the model, declared as options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from deconvfix.core.options import option
from deconvfix.errors import OptionError
from deconvfix.fit.regression import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import AUTO, DECONV
from deconvfix.frontends.calibrate import check_flat
from deconvfix.plan import Options, Plan

__all__ = [
    "Request",
    "check_sample_rate",
]


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """Everything that a conversion is asked for, besides the model, declared as options.

    Attributes:
        selects: A further condition on the names of layers.
        plan: Carry out this plan instead of making one.
        exported: Whether an ONNX file is made of the converted model.

    Raises:
        OptionError: If a value does not exist, or options exclude each other.
    """

    example_inputs: Any | None = option(
        None,
        "A tuple of positional inputs, or a pair (args tuple, kwargs dict).",
        more="With it functional calls are found by running a copy, and the model is compared end to end. "
        "Programs have inputs of their own, and for ONNX models they can be made up.",
    )
    calibration: Iterable[Any] | str | None = option(
        None,
        "Inputs for the fits calibrated and tuned: an iterable of inputs, or normal or uniform to draw them.",
        more="Each item is an input like `example_inputs`; a bare tensor is a tuple of one, and ONNX models "
        "take arrays, by name or in order. Drawn inputs have the shapes of `example_inputs`, of a program's "
        "own inputs, or of an ONNX model's where they are fixed. The closer the inputs are to what the model "
        "will see, and the more of them, the better the fit.",
    )
    tuning: Tuning | None = option(None, "Budget, seed and loss of init tuned.")
    flat_inputs: Iterable[Any] | str | None = option(
        None,
        "Constant inputs on which alone the grid has to go, such as silence: zeros, or an iterable.",
        more="For fitted layers that stay transposed convolutions. Vocoders need it: on other constants the "
        "same frequencies are real tones.",
        applies="keeps_layer",
    )
    memory: float = option(
        MEMORY,
        "Memory limit for the regression of one layer, in GiB. A layer that needs more keeps its fit to the "
        "weights, and a note says so.",
        metavar="GIB",
    )
    threads: int = option(1, "Threads of the runtime in which --to auto measures.", minimum=1)
    layer_seconds: float = option(
        20.0, "Time that --to auto may measure each geometry, about.", metavar="SECONDS"
    )
    strict: bool = option(
        False, "Fail if a layer is refused, or if the result could not be run and compared."
    )
    inplace: bool = option(False, "Change the model itself instead of a copy.")
    verify: bool = option(
        True,
        "Compare the converted layers and the model with the original.",
        more="For fitted forms, also measure the grid of both models on a constant input and in the outputs.",
    )
    pictures: bool = option(
        False,
        "Gather what `report.to_html()` draws: flat fields, outputs, spectra and kernels of a fitted form. "
        "Needs `verify`.",
    )
    sample_rate: float | None = option(
        None, "Sample rate of one-dimensional outputs: tones are also given in Hz.", metavar="HZ"
    )
    plan: Plan | None = None
    selects: Callable[[str], bool] | None = None
    exported: bool = False
    may_become: ClassVar[tuple[str, ...]] = (*Options.may_become, AUTO, DECONV)

    @classmethod
    def of(
        cls,
        *,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] | Callable[[str], bool] = (),
        **others: Any,
    ) -> Request:
        """From what Python code may give: one pattern or several, or a predicate to exclude by."""
        if callable(exclude):
            others["selects"], exclude = _opposite(exclude), ()
        return cls(include=_patterns(include), exclude=_patterns(exclude), **others)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is None and self.calibration is not None and not self.form.is_exact:
            object.__setattr__(self, "init", "calibrated")
        check_sample_rate(self.sample_rate)
        for name in ("threads", "layer_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(
                    name,
                    f"the value is {getattr(self, name)!r}",
                    "a positive number is needed",
                    f"Correct `{name}`",
                )
        if self.fold and self.to == AUTO:
            raise OptionError(
                "fold",
                f"the form is {AUTO!r}",
                "what is folded is not measured",
                "Fold with to='subpixel' first, or omit `fold`",
            )
        if self.fold and not self.form.folds:
            raise OptionError(
                "fold",
                f"the form is {self.to!r}",
                "what is folded becomes a sub-pixel convolution",
                "Convert with to='subpixel', which may follow another conversion",
            )
        if self.fold and self.init == "tuned":
            raise OptionError(
                "fold",
                "init is 'tuned'",
                "a resize-convolution is trained with its upsampling apart",
                "Omit `fold`, and fold the ONNX file that is exported",
            )
        if self.flat_inputs is not None:
            check_flat(self, self.tuning)

    def with_inputs_read(self) -> Request:
        """With a list of the calibration inputs, so that they can be gone through again."""
        if self.calibration is None or isinstance(self.calibration, (str, list)):
            return self
        return replace(self, calibration=list(self.calibration))

    def first_inputs(self) -> Any | None:
        """Inputs that the model can be run on; None where they would have to be drawn."""
        if self.example_inputs is None and isinstance(self.calibration, list):
            return self.calibration[0] if self.calibration else None
        return self.example_inputs


def _opposite(predicate: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: not predicate(name)


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def check_sample_rate(sample_rate: float | None) -> None:
    """Raises if it is given and not a positive number of Hz."""
    if sample_rate is None:
        return
    number = isinstance(sample_rate, (int, float)) and not isinstance(sample_rate, bool)
    if not number or not math.isfinite(sample_rate) or sample_rate <= 0:
        raise OptionError(
            "sample_rate",
            f"the value is {sample_rate!r}",
            "a positive number of Hz is needed",
            "Give the sample rate of the model's output, for example 22050",
        )
