"""Why a conversion was not carried out, or is not believed: its errors."""

from __future__ import annotations

from collections.abc import Sequence

from deconvfix.errors import ParityError, RefusedError
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Plan

__all__ = ["parity_error", "refused", "still_runs", "unproven"]


def parity_error(parity: ParityReport, where: str) -> ParityError:
    """The error for a proof that failed; `where` names the model if no layer is to blame."""
    todo = "Exclude the layer named here, and report this as a bug with its geometry"
    if parity.first_departure is None:
        todo = "No single layer departs: report this as a bug with the operators of the model"
    return ParityError(
        parity.first_departure or where,
        " ".join(parity.problems).rstrip("."),
        "the converted model must agree with the original up to rounding",
        parity.remedy or todo,
    )


def unproven(outcome: str, where: str) -> ParityError:
    """The error for a conversion of which `strict` wants more proof than `outcome` says."""
    return ParityError(
        where,
        outcome,
        "`strict` allows only what was run and agrees",
        "Give example inputs that the model runs on, or omit `strict`",
    )


def still_runs(names: Sequence[str]) -> ParityError:
    """The error for layers that were to be replaced and still run."""
    return ParityError(
        names[0] or "(model)",
        f"a transposed convolution still runs there after the conversion ({len(names)} in all)",
        "no layer that was replaced may still run",
        "Exclude it to keep it, and report this as a bug with the code that calls it",
    )


def refused(plan: Plan) -> RefusedError:
    """The error for a plan with refusals, where `strict` allows none."""
    first, *others = plan.refused
    return RefusedError(
        first.name or "(model)",
        first.reason.removeprefix(f"{first.name}: ").rstrip("."),
        "`strict` allows no refusal" + (f" ({len(others)} more)" if others else ""),
        "Exclude the layer, or omit `strict`",
    )
