"""What will be done to a model, decided before anything is done. Pure, printable, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.errors import CheckpointError, OptionError, Refusal
from deconvfix.forms import FORMS, form
from deconvfix.forms.base import Init, ReadWeight, Settings, known
from deconvfix.forms.equalized import AS_IT_IS

__all__ = [
    "WITH_STRENGTH",
    "Decision",
    "Fitted",
    "Match",
    "Options",
    "Plan",
    "Verdict",
    "make_plan",
]

RECIPE_FORMAT = "deconvfix.recipe/1"
# Forms that can take away a part of the grid.
WITH_STRENGTH = ("equalized", "notch")
Verdict = Literal["replaced", "kept", "refused"]


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
        exact_only: Why only the exact form can be applied.
        no_upsampling: Why the model cannot hold an upsampling of some kind.
        no_means: Why the model cannot hold the local means of the form 'notch'.
        fixed_weight: Why its weight cannot be set to other values, which the equalized form does.
        read_weight: Gives the weight in float64, (C_in, C_out / groups, *kernel_size); None when it
            is computed while the model runs.
    """

    name: str
    op: str
    spec: ConvTransposeSpec | None
    dtype: str
    input_sizes: tuple[tuple[int, ...], ...] = ()
    calls: int | None = None
    obstacle: Refusal | None = None
    exact_only: Refusal | None = None
    no_upsampling: Mapping[Interpolation, Refusal] = field(default_factory=dict, hash=False)
    no_means: Refusal | None = None
    fixed_weight: Refusal | None = None
    read_weight: ReadWeight | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Options:
    """The options of `deconvfix.convert` that concern the plan.

    Raises:
        OptionError: If a value does not exist.
    """

    to: str = "subpixel"
    interpolation: Interpolation = "nearest"
    padding_mode: PadMode | None = None
    init: Init | None = None
    seed: int = 0
    grow: int = 0
    reach: int = 4
    strength: float = 1.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known("to", self.to, tuple(each.name for each in FORMS))
        _ = self.settings  # checks itself
        if self.to not in WITH_STRENGTH and self.strength != 1:
            raise OptionError(
                "strength",
                f"the value is {self.strength:g} and the form is {self.to!r}",
                "a resize-convolution has no grid, and a sub-pixel convolution keeps all of it: only "
                "'equalized' and 'notch' can take away a part",
                "Choose one of these forms, or leave `strength` out",
            )

    @property
    def settings(self) -> Settings:
        """The part that forms look at."""
        return Settings(
            interpolation=self.interpolation,
            padding_mode=self.padding_mode,
            init=self.init,
            seed=self.seed,
            grow=self.grow,
            reach=self.reach,
            strength=self.strength,
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit to data found for a layer, in the values that the layer's dtype has.

    Attributes:
        kernel: The form's kernel, laid out as `forms.base.Form.fit` says.
        bias: (C_out,), or None for a layer without.
    """

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64] | None


@dataclass(frozen=True)
class Decision:
    """What happens to one layer.

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
        macs_before: Multiply-accumulates for each input pixel, of the transposed convolution.
        macs_after: The same of the new form.
        fitted: Its new weights, where they are written into a graph and were fitted to data. They are
            no part of a recipe.
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
    fitted: Fitted | None = field(default=None, compare=False, repr=False)

    def kernel(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The kernel that the layer gets: the one that was fitted to data, or to its `weight`."""
        if self.fitted is not None:
            return self.fitted.kernel
        assert self.form is not None
        assert self.spec is not None
        assert self.settings is not None
        return form(self.form).fit(self.spec, self.settings, weight)


@dataclass(frozen=True)
class Plan:
    """Decisions for all layers of a model, in the model's order. As JSON it is called a recipe."""

    to: str
    decisions: tuple[Decision, ...]

    def to_json(self) -> str:
        """The recipe: enough to rebuild the converted architecture around a checkpoint."""
        data = asdict(replace(self, decisions=tuple(map(_without_weights, self.decisions))))
        for each in data["decisions"]:
            del each["fitted"]
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
            return cls(data["to"], tuple(_decision(each) for each in data["decisions"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                "recipe",
                f"it cannot be read ({type(error).__name__}: {error})",
                f"a JSON object of the format {RECIPE_FORMAT!r} is needed",
                "Write one with `deconvfix convert ... --recipe FILE --dry-run`",
            ) from error

    def __getitem__(self, name: str) -> Decision:
        """The decision for the layer `name`."""
        for decision in self.decisions:
            if decision.name == name:
                return decision
        raise KeyError(name)

    def after(self, earlier: Plan | None) -> Plan:
        """This plan and what an earlier one replaced: the way from the original architecture."""
        if earlier is None:
            return self
        names = {each.name for each in self.decisions}
        return Plan(
            self.to,
            (*(each for each in earlier.replaced if each.name not in names), *self.decisions),
        )

    @property
    def refused(self) -> tuple[Decision, ...]:
        """The layers that were asked for and cannot be converted."""
        return tuple(each for each in self.decisions if each.decision == "refused")

    @property
    def replaced(self) -> tuple[Decision, ...]:
        """The layers that get a new form."""
        return tuple(each for each in self.decisions if each.decision == "replaced")


def make_plan(
    matches: Sequence[Match],
    options: Options,
    selects: Callable[[str], bool] | None = None,
) -> Plan:
    """Decides for each match: a form, or a refusal, or nothing.

    Args:
        matches: What was found.
        options: What was asked for.
        selects: Further condition on layer names.

    Raises:
        OptionError: If a pattern matches no layer at all.
    """
    names = [match.name for match in matches]
    for option, pattern in (
        *(("include", each) for each in options.include),
        *(("exclude", each) for each in options.exclude),
    ):
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(
                option,
                f"the pattern {pattern!r} matches none of the {len(names)} layers found",
                "each pattern must match a layer's name",
                f"Choose from: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
    return Plan(options.to, tuple(_decide(match, options, selects) for match in matches))


def _decide(match: Match, options: Options, selects: Callable[[str], bool] | None) -> Decision:
    spec = match.spec

    def decision(verdict: Verdict, reason: str) -> Decision:
        return Decision(match.name, match.op, verdict, None, reason, spec)

    included = not options.include or any(fnmatchcase(match.name, p) for p in options.include)
    excluded = any(fnmatchcase(match.name, p) for p in options.exclude)
    if not included or excluded or (selects is not None and not selects(match.name)):
        return decision("kept", "not selected")
    if options.to == "equalized" and options.strength == 0:
        # Nothing is done to it, so nothing can stand in the way.
        return decision("kept", AS_IT_IS)
    if match.obstacle is not None:
        return decision("refused", match.obstacle.sentence(match.name))
    if options.to != "subpixel" and match.exact_only is not None:
        return decision("refused", match.exact_only.sentence(match.name))
    missing = match.no_upsampling.get(options.interpolation)
    if options.to == "resize" and missing is not None:
        return decision("refused", missing.sentence(match.name))
    if options.to == "equalized" and match.fixed_weight is not None:
        return decision("refused", match.fixed_weight.sentence(match.name))
    target = form(options.to)
    if spec is None:
        assert match.exact_only is not None, "what has no spec and no obstacle is an unseen call"
        reason = "the same function; its geometry is seen when it runs"
        return replace(decision("replaced", reason), form=target.name, settings=options.settings)
    settled = target.settle(spec, options.settings, match.read_weight)
    if isinstance(settled, Refusal):
        return decision("refused", settled.sentence(match.name))
    if target.name == "notch" and not settled.exact and match.no_means is not None:
        return decision("refused", match.no_means.sentence(match.name))
    if target.name == "equalized" and settled.exact:
        return decision("kept", settled.note)
    if target.name == "notch" and settled.exact:
        target = form("subpixel")  # there is no grid to take out
    return Decision(
        name=match.name,
        op=match.op,
        decision="replaced",
        form=target.name,
        reason=settled.note,
        spec=spec,
        settings=settled.settings,
        exact=settled.exact,
        relative_residual=settled.relative_residual,
        macs_before=spec.macs_per_position(),
        macs_after=target.compile(spec, settled.settings).macs_per_position,
    )


def _without_weights(decision: Decision) -> Decision:
    return replace(decision, fitted=None)


def _decision(data: dict[str, Any]) -> Decision:
    if "fitted" in data:
        raise ValueError("a recipe holds no weights")
    spec, settings = data.pop("spec"), data.pop("settings")
    decision = Decision(
        **data,
        spec=None if spec is None else ConvTransposeSpec.from_dict(spec),
        settings=None if settings is None else Settings(**settings),
    )
    if not isinstance(decision.name, str) or not isinstance(decision.op, str):
        raise TypeError("a layer's name and op are strings")
    known("decision", decision.decision, get_args(Verdict))
    if decision.form is not None:
        known("form", decision.form, tuple(each.name for each in FORMS))
    if (decision.decision == "replaced") != (None not in (decision.form, settings)):
        raise ValueError(f"layer {decision.name!r} lacks a form or settings")
    return decision
