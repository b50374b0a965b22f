"""Which form suits a layer: every form says for itself what it would bring, and the best is recommended."""

from __future__ import annotations

from deconvfix.errors import Refusal
from deconvfix.forms import FORMS
from deconvfix.forms.base import KEEP, Candidate, Merit, Need, Recommendation, Settings
from deconvfix.forms.unfit import why_unfit
from deconvfix.grid.kernel import sum_rule_holds
from deconvfix.plan import Match

__all__ = ["recommend"]


def recommend(match: Match, *, visible: bool = True) -> Recommendation | None:
    """The form that suits a layer; None if its geometry is not known.

    Free of a grid already: a form that computes the same function. Otherwise the smallest change that
    removes the grid. Where the weight cannot be read or replaced, the exact form is left.

    Args:
        match: The layer.
        visible: False where the model ran, and none of its outputs has a visible grid.
    """
    spec = match.spec
    if spec is None:
        return None
    if match.obstacle is not None:
        return Recommendation(KEEP, f"It cannot be converted: {match.obstacle.found}.", 1.0)
    if max(spec.stride) == 1:
        return Recommendation(KEEP, "Stride 1: there are no phases, and so no grid.", 1.0)
    # By what forms say of themselves, so that a new form needs no change here.
    exact = next(form for form in FORMS if form.is_exact)
    if Need.OWN_PLACE in match.lacks:
        return _in_place(match)
    # Where even the exact form is refused, no other is possible.
    if isinstance(exact.settle(spec, Settings(), None), Refusal):
        return Recommendation(KEEP, "Its dense kernel would be too large to convert.", 1.0)
    unfit = why_unfit(spec, match.dtype, match.read_weight, named=False)
    if unfit is not None:
        reason = (
            f"No weight may be changed: {unfit.found}. The exact form computes the same function."
        )
        return Recommendation(exact.name, reason, exact.relative_macs(spec, Settings()))
    merit, best = max(_offers(match), key=lambda offer: offer[0])
    if not visible and merit < Merit.SAME_FUNCTION:
        reason = (
            "The outputs have no visible grid on constant inputs: the exact form changes nothing. Prefer "
            "another form only where you see a grid on inputs of your own."
        )
        return Recommendation(exact.name, reason, exact.relative_macs(spec, Settings()))
    return best


def _offers(match: Match) -> list[tuple[Merit, Recommendation]]:
    """What every form that can take the layer's place says for itself."""
    assert match.spec is not None
    weight = None if match.read_weight is None else match.read_weight()
    has_grid = None if weight is None else not sum_rule_holds(match.spec, weight, match.dtype)
    candidate = Candidate(match.spec, weight, has_grid, match.lacks)
    forms = [form for form in FORMS if form.keeps_layer or Need.OWN_PLACE not in match.lacks]
    return [offer for form in forms if (offer := form.recommend(candidate)) is not None]


def _in_place(match: Match) -> Recommendation:
    """For a layer whose weights alone may change."""
    offers = _offers(match)
    if not offers:
        return Recommendation(
            KEEP, "Its phases are equal already, or its weights cannot change.", 1.0
        )
    return max(offers, key=lambda offer: offer[0])[1]
