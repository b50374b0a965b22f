"""What a conversion must have proven, before anybody gets it."""

from __future__ import annotations

from typing import Any

from deconvfix.errors import ParityError, RefusedError
from deconvfix.frontends.base import Frontend
from deconvfix.parity import ParityReport
from deconvfix.plan import Plan
from deconvfix.report import ConversionReport

__all__ = ["allow_no_refusal", "check_proofs", "parity_error", "proof"]


def allow_no_refusal(plan: Plan) -> None:
    """For `strict`.

    Raises:
        RefusedError: If a layer was refused.
    """
    if not plan.refused:
        return
    first, *others = plan.refused
    raise RefusedError(
        first.name or "(model)",
        first.reason.removeprefix(f"{first.name}: ").rstrip("."),
        f"`strict` allows no refusal ({len(others)} more)" if others else "`strict` allows none",
        "Exclude the layer, or leave out `strict`",
    )


def proof(
    frontend: Frontend, before: Any, after: Any, plan: Plan, example_inputs: Any | None
) -> tuple[ParityReport | None, tuple[str, ...]]:
    """The comparison with the original, and a note; None if nothing could be compared."""
    inputs = [] if example_inputs is None else [example_inputs]
    parity = frontend.verify(before, after, inputs, plan)
    if not parity.comparisons and plan.replaced and example_inputs is None:
        return None, ("Nothing could be compared without a run: give example inputs.",)
    return parity, ()


def check_proofs(report: ConversionReport) -> None:
    """Looks at what was compared.

    Raises:
        ParityError: If the converted model departs, or a layer was missed.
    """
    if report.parity is not None and not report.parity.ok:
        raise parity_error(report.parity, report.input)
    if report.still_running:
        raise ParityError(
            report.still_running[0] or report.input,
            "a transposed convolution still runs there after the conversion "
            f"({len(report.still_running)} in all)",
            "every layer that is replaced must be gone",
            "Exclude it to keep it, and report this as a bug with the code that calls it",
        )


def parity_error(parity: ParityReport, where: str) -> ParityError:
    """The error for a proof that failed; `where` names the model if no layer departs."""
    return ParityError(
        parity.first_departure or where,
        " ".join(parity.problems).rstrip("."),
        "the converted model must agree with the original up to rounding",
        "Exclude the layer that is named, and report this as a bug with the layer's geometry",
    )
