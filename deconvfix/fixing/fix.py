"""`deconvfix.fix`: the visible grid taken out of a model, if that makes nothing worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from deconvfix.conversion import Conversion
from deconvfix.errors import OptionError
from deconvfix.fixing.report import FixReport
from deconvfix.fixing.search import HELDOUT_EVERY, Search
from deconvfix.frontends.base import Frontend, Restores, Translates
from deconvfix.frontends.registry import enter, opened
from deconvfix.plan import Plan
from deconvfix.request import check_sample_rate

__all__ = ["Fix", "fix"]


@dataclass(frozen=True)
class Fix(Conversion):
    """A `Conversion` whose report is about what is seen.

    Attributes:
        report: What was found and done.
    """

    report: FixReport  # type: ignore[assignment]


def fix(
    model: Any,
    *,
    data: Iterable[Any] | str,
    targets: Sequence[NDArray[Any]] | None = None,
    example_inputs: Any | None = None,
    seconds: float = 60.0,
    max_cost: float = 1.3,
    seed: int = 0,
    sample_rate: float | None = None,
) -> Fix:
    """Takes the visible grid out of a model's outputs, if that makes nothing worse.

    Args:
        model: As for `convert`; it is not changed. Modules and programs are trained, their own layers first;
            ONNX models get closed-form fits.
        data: Real inputs, batch by batch, as the model takes them; at least 8. Every fourth batch is held
            out: all that is reported is measured on these. "normal" or "uniform" draws latents, with
            `example_inputs` for their shapes.
        targets: True outputs for each batch of `data`, where there are some: quality is measured on them.
        example_inputs: Shapes for a distribution.
        seconds: For all candidates together.
        max_cost: The most operations of a run, relative to the original's.
        seed: Of all that is drawn.
        sample_rate: Of one-dimensional outputs, in Hz: tones are given in Hz.

    Returns:
        The fixed model, or the model itself where `report.fixed` is False.

    Raises:
        OptionError: If there are too few data, or a number is out of range.
        ModelError: If the model does not run on them.
    """
    if not seconds > 0 or not max_cost >= 1:
        raise OptionError(
            "seconds" if not seconds > 0 else "max_cost",
            f"the value is {seconds if not seconds > 0 else max_cost!r}",
            "a time above 0, and a cost of at least 1, are needed",
            "Correct the value",
        )
    check_sample_rate(sample_rate)
    given = opened(model)
    frontend, working = enter(given)
    batches = _batches(frontend, working, data, example_inputs, seed)
    if len(batches) < HELDOUT_EVERY * 2:
        raise OptionError(
            "data",
            f"there are {len(batches)} batches",
            f"at least {HELDOUT_EVERY * 2} are needed, as every fourth is held out",
            "Give more inputs, or smaller batches",
        )
    search = Search.start(frontend, working, batches, targets, seed, seconds, max_cost)
    if isinstance(search, FixReport):
        return Fix(given, Plan("keep", ()), replace(search, sample_rate=sample_rate))
    found = search.run()
    report = replace(search.report(found[0] if found else None), sample_rate=sample_rate)
    if found is None:
        return Fix(given, Plan("keep", ()), report)
    _, fixed, plan = found
    if isinstance(frontend, Translates):
        fixed = frontend.leave(fixed, given, changed=True, inplace=False)
    return Fix(fixed, plan, report)


def _batches(
    frontend: Frontend, model: Any, data: Iterable[Any] | str, example: Any | None, seed: int
) -> list[Any]:
    if not isinstance(data, str):
        return list(data)
    if isinstance(frontend, Restores):
        return frontend.drawn_batches(example, data, seed)
    raise OptionError(
        "data",
        f"it is {data!r}, and the model is no torch module",
        "inputs as the model takes them are needed",
        "Give inputs, batch by batch",
    )
