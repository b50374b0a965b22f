"""Which form suits a layer: every form says for itself what it would bring, and the best is recommended."""

from __future__ import annotations

from deconvfix.errors import Refusal
from deconvfix.forms import FORMS
from deconvfix.forms.base import KEEP, Candidate, Merit, Recommendation, Settings
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
    # Where even the exact form is refused, no other is possible.
    if isinstance(exact.settle(spec, Settings(), None), Refusal):
        return Recommendation(KEEP, "Its dense kernel would be too large to convert.", 1.0)
    unfit = why_unfit(spec, match.dtype, match.read_weight, named=False)
    if unfit is not None:
        reason = (
            f"No weight may be changed: {unfit.found}. The exact form computes the same function."
        )
        return Recommendation(exact.name, reason, exact.relative_macs(spec, Settings()))
    weight = None if match.read_weight is None else match.read_weight()
    has_grid = None if weight is None else not sum_rule_holds(spec, weight, match.dtype)
    candidate = Candidate(spec, weight, has_grid, match.lacks)
    offers = [offer for form in FORMS if (offer := form.recommend(candidate)) is not None]
    merit, best = max(offers, key=lambda offer: offer[0])
    if not visible and merit < Merit.SAME_FUNCTION:
        reason = (
            "The outputs have no visible grid on constant inputs: the exact form changes nothing. Prefer "
            "another form only where you see a grid on inputs of your own."
        )
        return Recommendation(exact.name, reason, exact.relative_macs(spec, Settings()))
    return best
