"""What `fix` found and did, as plain data and as sentences."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

__all__ = ["FIX_FORMAT", "Candidate", "FixReport", "GridChange", "Measured", "Pictures"]

FIX_FORMAT = "deconvfix.fix/1"


@dataclass(frozen=True)
class Measured:
    """A model's outputs on held-out inputs.

    Attributes:
        seen: The visible grid in the smooth parts, in steps of 1/255 of the original's range; the largest
            of its outputs.
        worst: The same in the worst patches.
        match_db: PSNR to the goal: the original's outputs without their grid.
        original_db: PSNR to the original's outputs; None for the original itself.
        colour_shift: The largest shift of a channel's mean against the original, in the same steps.
        truth_db: PSNR to the targets; None without.
        flat_db: Ripple of the answer to a constant input; None where it is not measured.
    """

    seen: float
    worst: float
    match_db: float
    original_db: float | None
    colour_shift: float
    truth_db: float | None = None
    flat_db: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One way that was tried.

    Attributes:
        name: What was done.
        measured: On held-out inputs; None where it failed.
        cost: Operations of a run, relative to the original's.
        keeps_names: Whether the weights load into unchanged code.
        objections: Why it was not taken: what it makes worse, or does not make better.
    """

    name: str
    measured: Measured | None
    cost: float
    keeps_names: bool
    objections: tuple[str, ...]


@dataclass(frozen=True)
class GridChange:
    """The visible grid before and after; see `Measured`."""

    seen_before: float
    worst_before: float
    seen_after: float
    worst_after: float


@dataclass(frozen=True)
class Pictures:
    """A region of a real output, before and after, (C, H, W) each, and the whole sample.

    Attributes:
        title: Which region it is.
        before: Of the original.
        after: Of the result.
        whole_before: The sample that it lies in.
        whole_after: The same.
        corner: Row and column of its first pixel.
    """

    title: str
    before: NDArray[Any]
    after: NDArray[Any]
    whole_before: NDArray[Any]
    whole_after: NDArray[Any]
    corner: tuple[int, int]


@dataclass(frozen=True)
class FixReport:
    """What `fix` found and did.

    Attributes:
        fixed: Whether the model that is returned is another one, with less of a grid and nothing worse.
        reason: A sentence: what was done, or why nothing was.
        nothing_to_fix: Whether no grid was to be seen.
        grid: The visible grid, on held-out inputs.
        match_db: PSNR of the result to the original's outputs without their grid.
        colour_shift: The largest shift of a channel's mean, in 1/255 of the output's range.
        cost: Operations of a run, relative to the original's.
        original: The original, measured alike.
        candidates: What was tried, in this order.
        heldout: How many samples were measured on, which no fit has seen.
        goal: What the outputs are compared with, in words.
        notes: Sentences about what limits the evidence.
        pictures: The regions where the grid is strongest before and after; empty for outputs that are no
            pictures.
    """

    fixed: bool
    reason: str
    nothing_to_fix: bool
    grid: GridChange
    match_db: float
    colour_shift: float
    cost: float
    original: Measured
    candidates: tuple[Candidate, ...]
    heldout: int
    goal: str
    notes: tuple[str, ...] = ()
    pictures: tuple[Pictures, ...] = field(default=(), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(replace(self, pictures=()))
        del data["pictures"]
        return {"format": FIX_FORMAT, **data}

    def to_html(self) -> str:
        """A page of its own, without scripts or anything from the network."""
        from deconvfix.fixing.page import page

        return page(self)

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def explain(self) -> str:
        """The choice in a paragraph."""
        before = self.original
        sentences = [
            f"On {self.heldout} held-out samples the original's visible grid is "
            f"{max(before.seen, 0.0):.2f} steps of 255 in the smooth parts and "
            f"{max(before.worst, 0.0):.2f} in the worst patches.",
            self.reason,
        ]
        for candidate in self.candidates:
            if candidate.measured is None or not candidate.objections:
                continue
            sentences.append(
                f"Not taken: {candidate.name} (grid {max(candidate.measured.seen, 0.0):.2f}, worst "
                f"{max(candidate.measured.worst, 0.0):.2f}), because {'; '.join(candidate.objections)}."
            )
        return " ".join([*sentences, *self.notes])

    def __str__(self) -> str:
        return self.reason
