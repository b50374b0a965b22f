"""What `fix` found and did, as plain data and as sentences."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.grid.tones import AUDIBLE_DB, LockedTones, level_in_words

__all__ = ["FIX_FORMAT", "Candidate", "FixReport", "GridChange", "Measured", "Pictures"]

FIX_FORMAT = "deconvfix.fix/1"


@dataclass(frozen=True)
class Measured:
    """A model's outputs on held-out inputs.

    Attributes:
        seen: The visible grid in the smooth parts, in steps of 1/255 of the original's range; the largest
            of its outputs. For sound the level of the tones that are locked to the phase, in real outputs
            or in silence, whichever is louder, in thousandths of the programme's rms: 1 is -60 dB.
        worst: The same in the worst patches; for sound that in silence.
        match_db: PSNR to the goal: the original's outputs without their grid. For sound SNR, here and below.
        original_db: PSNR to the original's outputs; None for the original itself.
        colour_shift: The largest shift of a channel's mean against the original, in the same steps.
        truth_db: PSNR to the targets; None without.
        flat_db: Ripple of the answer to a constant input, relative to its mean, for sound to the programme;
            None where it is not measured.
        tones: Of a sound, in real outputs; None for pictures.
    """

    seen: float
    worst: float
    match_db: float
    original_db: float | None
    colour_shift: float
    truth_db: float | None = None
    flat_db: float | None = None
    tones: LockedTones | None = None

    def grid_in_words(self) -> str:
        """The grid that is seen, or heard."""
        if self.tones is not None:
            silence = "" if self.flat_db is None else f", in silence {level_in_words(self.flat_db)}"
            return f"tones in real outputs: {level_in_words(self.tones.total_db)}{silence}"
        return (
            f"{max(self.seen, 0.0):.2f} steps of 255 in the smooth parts and {max(self.worst, 0.0):.2f} in "
            "the worst patches"
        )


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
        sample_rate: Of sounds, in Hz; None where it is not known.
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
    sample_rate: float | None = None
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
        grid = "" if self.is_sound else "a visible grid of "
        sentences = [
            f"On {self.heldout} held-out samples the original has {grid}{before.grid_in_words()}.",
            *self._strongest(),
            self.reason,
        ]
        for candidate in self.candidates:
            if candidate.measured is None or not candidate.objections:
                continue
            sentences.append(
                f"Not taken: {candidate.name} ({candidate.measured.grid_in_words()}), because "
                f"{'; '.join(candidate.objections)}."
            )
        return " ".join([*sentences, *self.notes])

    @property
    def is_sound(self) -> bool:
        """Whether the output is one-dimensional: levels are in decibels then, relative to the programme."""
        return self.original.tones is not None

    def units(self) -> str:
        """What the numbers are in, for a table."""
        if self.is_sound:
            return (
                "Tones that are locked to the phase, in real outputs and in silence, relative to the rms of "
                f"the original's output (not heard below {AUDIBLE_DB:.0f} dB); match as a signal-to-noise "
                "ratio, to"
            )
        return (
            "Grid, worst patches and colour shift in steps of 1/255 of the output's range; true pictures "
            "have a grid below 0.3; match to"
        )

    def titles(self) -> tuple[str, ...]:
        """Of `cells`."""
        return (
            ("Tones", "Silence", "Match") if self.is_sound else ("Grid", "Worst", "Match", "Colour")
        )

    def cells(self, measured: Measured) -> tuple[str, ...]:
        """What was measured, for a row of a table."""
        match = f"{measured.match_db:.1f} dB"
        if measured.tones is None:
            numbers = (measured.seen, measured.worst)
            grid, worst = (f"{max(number, 0.0):.2f}" for number in numbers)
            return grid, worst, match, f"{measured.colour_shift:.1f}"
        tones, silence = (
            "" if level is None else "none" if level <= LOWEST_DB else f"{level:.0f} dB"
            for level in (measured.tones.total_db, measured.flat_db)
        )
        return tones, silence, match

    def _strongest(self) -> tuple[str, ...]:
        """The strongest tone of the original, where there is one."""
        tones = self.original.tones
        if tones is None or tones.frequency is None:
            return ()
        at = f"{tones.frequency:.4g} cycles per sample"
        if self.sample_rate is not None:
            at = f"{tones.frequency * self.sample_rate:g} Hz"
        return (f"The strongest tone is at {at}, {level_in_words(tones.strongest_db)}.",)

    def __str__(self) -> str:
        return self.reason
