"""What will be done to a model, decided before anything is done. Pure, printable, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import NoneType
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.options import known, option
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import CheckpointError, OptionError, Refusal
from deconvfix.forms import DECONV, FORMS, form
from deconvfix.forms.base import Compiled, Form, Need, ReadWeight, Settings
from deconvfix.targets.profile import NO_LIMITS, Profile, profile_named

__all__ = [
    "Decision",
    "Fitted",
    "Match",
    "Options",
    "Plan",
    "Replaced",
    "Verdict",
    "lacking",
]

RECIPE_FORMAT = "deconvfix.recipe/1"
Verdict = Literal["replaced", "kept", "refused"]
# What text that is no recipe raises.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Match:
    """A transposed convolution found in a model.

    Attributes:
        name: Its name in the model: the module's path, or the path of the module whose code calls
            the function, followed by the function's name.
        op: What was found, "ConvTranspose2d" or "conv_transpose2d".
        spec: Its geometry; None when it cannot be known (then `obstacle` says why).
        dtype: Of the weight, in torch's words without "torch.".
        input_sizes: Spatial input sizes seen on the example inputs, each once.
        calls: How often it ran on the example inputs; None without example inputs.
        obstacle: Why no form can be applied.
        lacks: What forms may need, and this layer or the model around it does not have, with the reason.
        read_weight: Gives the weight in float64, (C_in, C_out / groups, *kernel_size); None when it
            is computed while the model runs.
        macs: Multiply-accumulates for each input pixel, where the model spends others on it than `spec` says.
        upsampling: As in `Decision`.
    """

    name: str
    op: str
    spec: ConvTransposeSpec | None
    dtype: str
    input_sizes: tuple[tuple[int, ...], ...] = ()
    calls: int | None = None
    obstacle: Refusal | None = None
    lacks: Mapping[Need, Refusal] = field(default_factory=dict, hash=False)
    read_weight: ReadWeight | None = field(default=None, compare=False, repr=False)
    macs: int | None = None
    upsampling: str | None = None


def lacking(found: Mapping[Need, Refusal | None]) -> dict[Need, Refusal]:
    """For `Match.lacks`: the needs for which a search found a refusal."""
    return {need: refusal for need, refusal in found.items() if refusal is not None}


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """The options of `deconvfix.convert` that concern the plan.

    Raises:
        OptionError: If a value does not exist.
    """

    to: str = option(
        "subpixel",
        f"What a layer becomes. {'; '.join(f'{form.name}: {form.summary}' for form in FORMS)}; auto: the "
        "first of these as it is fastest in the target's runtime, where that is faster (ONNX files only); "
        "deconv: the way back, one for each convolution with a pixel shuffle or nearest upsampling (ONNX "
        "files only).",
    )
    target: str | None = option(
        None,
        "The runtime or chip that an ONNX file is for: a name (`deconvfix targets` lists them) or a TOML "
        "file. Each layer is written as its profile allows; no file that breaks the profile is written.",
        metavar="NAME|FILE.toml",
    )
    include: tuple[str, ...] = option(
        (), "Convert only the layers whose names match.", metavar="GLOB"
    )
    exclude: tuple[str, ...] = option((), "Keep the layers whose names match.", metavar="GLOB")
    may_become: ClassVar[tuple[str, ...]] = tuple(form.name for form in FORMS)

    def __post_init__(self) -> None:
        super().__post_init__()
        known("to", self.to, self.may_become)
        if not self.form.has_strength and self.strength != 1:
            raise OptionError(
                "strength",
                f"the value is {self.strength:g} and the form is {self.to!r}",
                "a resize-convolution has no grid, and a sub-pixel convolution keeps all of it: only "
                f"{' and '.join(repr(form.name) for form in FORMS if form.has_strength)} can remove a part",
                "Choose one of these forms, or omit `strength`",
            )

    @property
    def form(self) -> Form:
        """The form that was asked for."""
        return form(self.to)

    @property
    def settings(self) -> Settings:
        """The part that forms look at."""
        return Settings(**{known.name: getattr(self, known.name) for known in fields(Settings)})


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit to data found for a layer, in the values that the layer's dtype has.

    Attributes:
        kernel: The form's kernel, laid out as `forms.base.Form.fit` says.
        bias: (C_out,), or None where it stays as it is.
        scales: What the kernel is a whole multiple of where it is stored as integers, with axes of 1 where
            they are the same; None for floats.
    """

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64] | None
    scales: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Decision:
    """What happens to one layer.

    A layer that is replaced is a `Replaced`, but for a call whose geometry is seen only when it runs.

    Attributes:
        name: The layer, as in `Match`.
        op: What was found.
        decision: "replaced", "kept" (not asked for, or nothing to do) or "refused".
        form: The form it gets, or None.
        reason: A sentence: why, or what the form does to it.
        spec: Its geometry, None if unknown.
        settings: The form's choices for this layer.
        exact: Whether the function stays the same; True for layers that are not replaced.
        relative_residual: Size of the change of the kernel, for fitted forms.
        macs_before: Multiply-accumulates for each input pixel, of what was found.
        macs_after: The same of the new form.
        upsampling: What upsamples, for a convolution into which nearest upsampling is folded.
        fitted: Its new weights, where a graph gets them from a fit to data. They are no part of a recipe.
    """

    name: str
    op: str
    decision: Verdict
    form: str | None
    reason: str
    spec: ConvTransposeSpec | None
    settings: Settings | None = None
    exact: bool = True
    relative_residual: float | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    upsampling: str | None = None
    fitted: Fitted | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Replaced(Decision):
    """A layer that gets a new form: its geometry, the form and the form's choices are known."""

    form: str
    spec: ConvTransposeSpec
    settings: Settings

    @property
    def target(self) -> Form:
        """The form that it gets."""
        return form(self.form)

    def compiled(self) -> Compiled:
        """The layer in its new form."""
        return self.target.compile(self.spec, self.settings)

    def apart(self) -> Replaced:
        """The same with nothing folded: what the layer means, whichever way it is written."""
        fitted = self.fitted
        if fitted is not None:
            kernel = self.target.parted(self.spec, self.settings, fitted.kernel)
            fitted = replace(fitted, kernel=kernel)
        return replace(self, settings=replace(self.settings, fold=False), fitted=fitted)

    def kernel(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The kernel that the layer gets: the one that was fitted to data, or to its `weight`.

        Args:
            weight: The trained one, (C_in, C_out / groups, *kernel_size).
        """
        if self.fitted is not None:
            return self.fitted.kernel
        return self.target.fit(self.spec, self.settings, weight)


@dataclass(frozen=True)
class Plan:
    """Decisions for all layers of a model, in the model's order. As JSON it is called a recipe.

    Attributes:
        to: What was asked for.
        decisions: One for each layer.
        target: What the model is written for: a name of a profile, or the path of one.
    """

    to: str
    decisions: tuple[Decision, ...]
    target: str | None = None

    @property
    def profile(self) -> Profile:
        """Of the target; without limits where there is none."""
        return NO_LIMITS if self.target is None else profile_named(self.target)

    def to_json(self) -> str:
        """The recipe: enough to rebuild the converted architecture around a checkpoint."""
        # Fitted weights go before asdict, which would copy them all.
        light = tuple(replace(decision, fitted=None) for decision in self.decisions)
        data = asdict(replace(self, decisions=light))
        for decision in data["decisions"]:
            del decision["fitted"]
            if decision["upsampling"] is None:
                del decision["upsampling"]
        return json.dumps({"format": RECIPE_FORMAT, **data}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a recipe.

        Raises:
            CheckpointError: If the text is not a recipe of this format.
        """
        try:
            data = json.loads(text)
            if data["format"] != RECIPE_FORMAT:
                raise ValueError(f"format {data['format']!r}")
            target = data.get("target")  # older recipes have none
            if not isinstance(target, str | None):
                raise TypeError(f"target {target!r}")
            plan = cls(data["to"], tuple(map(_decision, data["decisions"])), target)
            names = [decision.name for decision in plan.decisions]
            if len(set(names)) < len(names):
                raise ValueError("it has two decisions for one layer")
            return plan
        except _UNREADABLE as error:
            raise CheckpointError(
                "recipe",
                f"it cannot be read ({type(error).__name__}: {error})",
                f"a JSON object of the format {RECIPE_FORMAT!r} is needed",
                "Write one with `deconvfix convert ... --recipe FILE --dry-run`",
            ) from error

    def __getitem__(self, name: str) -> Decision:
        """The decision for the layer `name`."""
        return {decision.name: decision for decision in self.decisions}[name]

    def after(self, earlier: Plan | None) -> Plan:
        """This plan and what an earlier one replaced: the way from the original architecture."""
        if earlier is None:
            return self
        names = {decision.name for decision in self.decisions}
        # Layers that the earlier plan has exchanged are not found any more.
        gone = tuple(decision for decision in earlier.changed if decision.name not in names)
        return replace(self, decisions=gone + self.decisions)

    @property
    def refused(self) -> tuple[Decision, ...]:
        """The layers that were asked for and cannot be converted."""
        return tuple(decision for decision in self.decisions if decision.decision == "refused")

    @property
    def changed(self) -> tuple[Decision, ...]:
        """Everything that gets a new form, calls whose geometry is seen only when they run among it."""
        return tuple(decision for decision in self.decisions if decision.decision == "replaced")

    @property
    def replaced(self) -> tuple[Replaced, ...]:
        """The layers of known geometry that get a new form."""
        return tuple(decision for decision in self.decisions if isinstance(decision, Replaced))

    @property
    def folded(self) -> frozenset[str]:
        """Names of the convolutions into which nearest upsampling is folded."""
        return frozenset(
            decision.name for decision in self.replaced if decision.upsampling is not None
        )

    @property
    def stays(self) -> frozenset[str]:
        """Names of the layers that are a transposed convolution still: kept, refused, or corrected."""
        return frozenset(
            decision.name
            for decision in self.decisions
            if decision.decision != "replaced"
            or (isinstance(decision, Replaced) and decision.target.keeps_layer)
        )


# What JSON may hold in the fields of a decision, besides those that check themselves.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "op", "reason"), (str,)),
    "exact": (bool,),
    "relative_residual": (float, int, NoneType),
    **dict.fromkeys(("macs_before", "macs_after"), (int, NoneType)),
    "upsampling": (str, NoneType),
}


def _decision(data: dict[str, Any]) -> Decision:
    # Weights come from the checkpoint. A recipe that had some could replace them unseen.
    if "fitted" in data:
        raise ValueError("a recipe holds no weights")
    spec, settings = data.pop("spec"), data.pop("settings")
    # The same rule as for a plan that was made: geometry, form and choices make a `Replaced`.
    kind: Any = Decision if None in (spec, settings, data["form"]) else Replaced
    decision: Decision = kind(
        **data,
        spec=None if spec is None else ConvTransposeSpec.from_dict(spec),
        settings=None if settings is None else Settings(**settings),
    )
    for name, kinds in _KINDS.items():
        value = getattr(decision, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"the {name} of a layer is a {type(value).__name__}")
    known("decision", decision.decision, get_args(Verdict))
    if decision.form is not None:
        known("form", decision.form, (*(form.name for form in FORMS), DECONV))
    if (decision.decision == "replaced") != (None not in (decision.form, settings)):
        raise ValueError(f"layer {decision.name!r} lacks a form or settings")
    return decision
