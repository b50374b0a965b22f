"""The decision for each layer: a form, or a refusal, or nothing. Pure: the same input gives the same plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from deconvfix.errors import OptionError, Refusal
from deconvfix.forms import FORMS, form
from deconvfix.forms.base import KEEP, Need, Settings
from deconvfix.forms.unfit import why_unfit
from deconvfix.plan import Decision, Match, Options, Plan, Replaced, Verdict

__all__ = ["as_folded", "can_fold", "is_selected", "make_plan", "not_folded", "with_own_folds"]


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
    asked = [("include", glob) for glob in options.include]
    asked += [("exclude", glob) for glob in options.exclude]
    # A pattern that matches nothing is a typing error more often than not.
    for which, pattern in asked:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(
                which,
                f"the pattern {pattern!r} matches none of the {len(names)} layers found",
                "each pattern must match a layer's name",
                f"Choose from: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
    decisions = tuple(_decide(match, options, selects) for match in matches)
    return Plan(options.to, decisions, options.target)


_EXACT = next(known for known in FORMS if known.is_exact)
# Measured on networks with activations between their layers.
_WEIGHTS_ALONE = Refusal(
    "this form changes what it computes, and there are no inputs to fit it to",
    "inputs are needed: networks fitted to their weights alone lost 2 to 11 dB, and their colours",
    "Give calibration inputs, use `fix`, or ask for init 'fit' by name",
)


def _decide(match: Match, options: Options, selects: Callable[[str], bool] | None) -> Decision:
    spec, target, settings = match.spec, options.form, options.settings
    # Upsampling and a convolution of the model's own stay the same function, whatever other layers become.
    if match.upsampling is not None and not target.is_exact:
        target, settings = _EXACT, replace(settings, init=None)

    def decision(verdict: Verdict, reason: str) -> Decision:
        return Decision(match.name, match.op, verdict, None, reason, spec)

    # What was not asked for is no refusal, whatever stands in its way.
    if not is_selected(match.name, options, selects):
        return decision("kept", "not selected")
    untouched = target.why_untouched(settings)
    if untouched is not None:
        return decision("kept", untouched)
    if match.obstacle is not None:
        return decision("refused", match.obstacle.sentence(match.name))
    # Before the weight is read: what a layer lacks may be the weight.
    refusal = _first_lacking(match, target.needs(settings))
    if refusal is not None:
        return decision("refused", refusal.sentence(match.name))
    if spec is None:
        # What has neither geometry nor obstacle is a call that is converted where it runs.
        reason = "the same function; its geometry is seen when it runs"
        return replace(decision("replaced", reason), form=target.name, settings=settings)
    if not target.is_exact:
        unfit = why_unfit(spec, match.dtype, match.read_weight, named=bool(options.include))
        if unfit is not None:
            return decision("refused", unfit.sentence(match.name))
    # The form decides what is open, and may choose another one or leave the layer as it is.
    settled = target.settle(spec, settings, match.read_weight)
    if isinstance(settled, Refusal):
        return decision("refused", settled.sentence(match.name))
    refusal = _first_lacking(match, settled.needs)
    if refusal is not None:
        return decision("refused", refusal.sentence(match.name))
    if settled.form == KEEP:
        return decision("kept", settled.note)
    if options.init is None and settled.settings.init == "fit" and not settled.exact:
        return decision("refused", _WEIGHTS_ALONE.sentence(match.name))
    target = target if settled.form is None else form(settled.form)
    return Replaced(
        name=match.name,
        op=match.op,
        decision="replaced",
        form=target.name,
        reason=settled.note,
        spec=spec,
        settings=settled.settings,
        exact=settled.exact,
        relative_residual=settled.relative_residual,
        macs_before=match.macs or spec.macs_per_position(),
        macs_after=target.compile(spec, settled.settings).macs_per_position,
        upsampling=match.upsampling,
    )


def with_own_folds(plan: Plan) -> Plan:
    """A plan whose resize-convolutions are folded where that saves multiply-accumulates, for an ONNX file."""
    return replace(
        plan,
        decisions=tuple(
            as_folded(decision, decision.settings)
            if isinstance(decision, Replaced) and can_fold(decision, decision.settings)
            else decision
            for decision in plan.decisions
        ),
    )


def can_fold(decision: Replaced, settings: Settings) -> bool:
    """Whether it writes upsampling and a convolution that can be folded, and nobody is against it.

    Args:
        decision: The decision.
        settings: What it would be written by. The border does not count: a calibration may choose another.
    """
    target, settings = decision.target, replace(settings, padding_mode="zeros")
    if target.shuffles or settings.fold is False or settings.init == "tuned":
        return False
    return target.folding(decision.spec, replace(settings, fold=True)) is not None


def as_folded(decision: Replaced, settings: Settings) -> Replaced:
    """A decision with settings under which it is folded, if its border can be, and what is told of it."""
    return _told(decision, replace(settings, fold=True))


def not_folded(decision: Replaced) -> Replaced:
    """A decision with its upsampling and its convolution apart."""
    return _told(decision, replace(decision.settings, fold=False))


def _told(decision: Replaced, settings: Settings) -> Replaced:
    """A decision with other settings, and what its row says of them: whether it is folded, and the cost."""
    target, spec = decision.target, decision.spec
    reason = decision.reason.removesuffix(target.words_of_fold(spec, decision.settings))
    return replace(
        decision,
        settings=settings,
        reason=reason + target.words_of_fold(spec, settings),
        macs_after=target.compile(spec, settings).macs_per_position,
    )


def is_selected(name: str, options: Options, selects: Callable[[str], bool] | None = None) -> bool:
    """Whether the patterns of names, and a further condition, ask for a layer."""
    included = not options.include or any(fnmatchcase(name, glob) for glob in options.include)
    excluded = any(fnmatchcase(name, glob) for glob in options.exclude)
    return included and not excluded and (selects is None or selects(name))


def _first_lacking(match: Match, needs: Sequence[Need]) -> Refusal | None:
    """Why a layer does not have what a form needs; None if it has everything."""
    return next((match.lacks[need] for need in needs if need in match.lacks), None)
