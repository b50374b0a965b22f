"""What an intended change does to a model, as plain data: fidelity, and the grid before and after."""

from __future__ import annotations

from dataclasses import dataclass

from deconvfix.core.decibels import LOWEST_DB, decibels, decibels_in_words
from deconvfix.grid.flat_field import FlatField
from deconvfix.grid.tones import LockedTones, level_in_words
from deconvfix.grid.visible import VISIBLE, VisibleGrid

__all__ = [
    "MADE_UP",
    "Fidelity",
    "OutputChange",
    "Tone",
]


# The visible grid rose if it rose by so much, in 1/255 of the range: less may be texture.
_RISE = 0.15
_SAME = 0.05
# The same for tones, in dB.
_LOUDER_DB = 1.5
# What a match on noise is worth.
MADE_UP = (
    "The outputs were compared on made-up noise, which proves nothing about pictures or sounds: the match is "
    "usually better there. Give real inputs."
)


@dataclass(frozen=True)
class Tone:
    """The power of an output at one frequency of the layers' grids, before and after.

    Attributes:
        frequency: Cycles per output pixel, per axis.
        hz: The same in Hz, for one dimension with a sample rate.
        layers: Those whose grids have this frequency; see `spectra.Peak`.
        ratio_db_before: Power there over the median power of the neighbouring frequencies; off the
            axes None below 10 dB.
        ratio_db_after: The same of the converted model.
    """

    frequency: tuple[float, ...]
    hz: float | None
    layers: tuple[str, ...]
    ratio_db_before: float | None
    ratio_db_after: float | None

    @property
    def strength(self) -> float:
        """The larger of the ratios."""
        known = [
            ratio for ratio in (self.ratio_db_before, self.ratio_db_after) if ratio is not None
        ]
        return max(known, default=LOWEST_DB)

    def in_words(self) -> str:
        """The frequency with its unit."""
        if self.hz is not None:
            return f"{self.hz:g} Hz"
        at = ", ".join(f"{value:.4g}" for value in self.frequency)
        return f"{at} per sample" if len(self.frequency) == 1 else f"({at}) per pixel"


@dataclass(frozen=True)
class OutputChange:
    """The grid in one output of the model, before and after.

    Attributes:
        index: The number of the output.
        period: The longest period of the layers' grids, in output pixels per axis.
        flat_before: The original's answer to a constant input, away from the border; None if that
            never becomes periodic.
        flat_after: The converted model's.
        tones: The outputs' power at the frequencies of the grids.
        shift: How far the mean of each channel moved, converted minus original, in the unit of the output.
        span: From the smallest to the largest value of the original's output.
        visible_before: The visible grid of the original's output; None where it is too small, and for sound.
        visible_after: The converted model's, in the same patches and steps.
        heard_before: For sound the tones in the original's output that are locked to the phase.
        heard_after: The converted model's, relative to the same programme.
        programme: rms of the original's output, for sound; 0 for pictures.
        snr_db: Signal-to-noise ratio of the converted model's sound; None for pictures.
    """

    index: int
    period: tuple[int, ...]
    flat_before: FlatField | None
    flat_after: FlatField | None
    tones: tuple[Tone, ...]
    shift: tuple[float, ...] = ()
    span: float = 0.0
    visible_before: VisibleGrid | None = None
    visible_after: VisibleGrid | None = None
    heard_before: LockedTones | None = None
    heard_after: LockedTones | None = None
    programme: float = 0.0
    snr_db: float | None = None

    def visible_in_words(self) -> str | None:
        """What became of the visible grid, or of the tones of a sound; None if it was not measured."""
        if self.heard_before is not None and self.heard_after is not None:
            return (
                f"tones that are locked to the phase: {self.heard_before.in_words()} before, "
                f"{self.heard_after.in_words()} after"
            )
        before, after = self.visible_before, self.visible_after
        if before is None or after is None:
            return None
        # As they are printed: a mean below zero is less than chance would give.
        old, new = max(before.mean, 0.0), max(after.mean, 0.0)
        verb = "fell from" if new < old else "rose from"
        numbers = f"{old:.2f} to {new:.2f}"
        if abs(new - old) < _SAME:
            verb, numbers = "stayed at", f"{new:.2f}"
        return (
            f"the visible grid {verb} {numbers} steps of 255 (in the worst patches "
            f"{max(before.worst, 0.0):.2f} before, {max(after.worst, 0.0):.2f} after)"
        )

    @property
    def looks_worse(self) -> bool:
        """Whether the visible grid rose to where it can be seen, or tones to where they are heard."""
        if self.heard_before is not None and self.heard_after is not None:
            louder = self.heard_after.total_db > self.heard_before.total_db + _LOUDER_DB
            return self.heard_after.is_heard and louder
        before, after = self.visible_before, self.visible_after
        return (
            before is not None
            and after is not None
            and after.mean > VISIBLE
            and after.mean > max(before.mean, 0.0) + _RISE
        )

    def shift_in_words(self) -> str | None:
        """The largest shift of a channel's mean; None if it was not measured."""
        if not self.shift or not self.span:
            return None
        channel, largest = max(enumerate(self.shift), key=lambda pair: abs(pair[1]))
        return (
            f"Output {self.index}: the mean of a channel moved by up to {largest:+.3g} (channel {channel}), "
            f"{100 * abs(largest) / self.span:.2g} % of the output's range."
        )

    def strongest(self, most: int) -> tuple[Tone, ...]:
        """The tones that stand out most, before or after."""
        return tuple(sorted(self.tones, key=lambda tone: -tone.strength)[:most])


@dataclass(frozen=True)
class Fidelity:
    """How well the outputs still match the original's after an intended change, and what became of the grid.

    Measured on calibration batches that were held out, where there are enough (64 samples), or else on the
    last one, or on the example inputs; without any of these, what needs a run is None. Where too few were
    given to hold some out, the match is that on inputs which the fit has seen.

    Attributes:
        psnr_db: Converted against original output, peak = range of the original's.
        ripple_db_before: Largest flat-field ripple of a converted layer before, by its weights
            (-300: none).
        ripple_db_after: The same after, by the weights that the converted layers have.
        network_ripple_db_before: Ripple of the whole model's answer to a constant input, away from the
            border; the largest of its outputs. None if it never becomes periodic.
        network_ripple_db_after: The same of the converted model.
        psnr_samples: How many samples were looked at.
        psnr_seen: Whether the layers were fitted to these very samples.
        calibration_samples: How many samples the layers were fitted to; None for other fits.
        outputs: The outputs one by one.
        psnr_heldout: Whether they are calibration samples that were held out: no fit has seen them.
    """

    psnr_db: float | None
    ripple_db_before: float
    ripple_db_after: float
    network_ripple_db_before: float | None = None
    network_ripple_db_after: float | None = None
    psnr_samples: int | None = None
    psnr_seen: bool = False
    calibration_samples: int | None = None
    outputs: tuple[OutputChange, ...] = ()
    psnr_heldout: bool = False

    @property
    def looks_worse(self) -> bool:
        """Whether the visible grid of an output rose to where it can be seen."""
        return any(output.looks_worse for output in self.outputs)

    def sentence(self) -> str:
        """What the change did, for the owner of the model: first what is seen, then on constants."""
        constants = self._on_constants()
        heard = [
            (output.heard_before.total_db, words)
            for output in self.outputs
            if output.heard_before and (words := output.visible_in_words())
        ]
        if heard:
            return f"In the outputs, {max(heard)[1]}. {constants}"
        seen = [
            (output.visible_before.mean, words)
            for output in self.outputs
            if output.visible_before and (words := output.visible_in_words())
        ]
        if not seen:
            return constants
        return f"In the smooth parts of the outputs, {max(seen)[1]}. {constants}"

    def _on_constants(self) -> str:
        before, after = self.network_ripple_db_before, self.network_ripple_db_after
        what = "On a constant input, the grid"
        # Without a run of the network the layers speak for it.
        if before is None or after is None:
            before, after = self.ripple_db_before, self.ripple_db_after
            what = "On a constant input, the strongest grid of a layer"
        verb = "fell" if after < before else "changed"
        summary = f"{what} {verb} from {decibels_in_words(before)} to {decibels_in_words(after)}"
        if decibels_in_words(before) == decibels_in_words(after):
            summary = f"{what} stayed at {decibels_in_words(after)}"
        # By the rms, as outputs may have very different units.
        loudest = max(
            (output for output in self.outputs if output.flat_before and output.flat_after),
            key=lambda output: output.flat_before.rms if output.flat_before else 0.0,
            default=None,
        )
        if loudest is not None and before > 0:
            # Sound has no level that a ripple could be given relative to, nor has what swings about zero.
            assert loudest.flat_before
            assert loudest.flat_after
            old, new = loudest.flat_before.rms, loudest.flat_after.rms
            verb = "fell" if new < old else "changed"
            levels = f"an rms of {old:.2g} to {new:.2g}"
            if loudest.programme:
                was, now = (level_in_words(decibels(x / loudest.programme)) for x in (old, new))
                levels = f"{was} to {now}"
            noun = "tone" if len(loudest.period) == 1 else "grid"
            summary = f"On a constant input, the {noun} {verb} from {levels}"
        match = self.match_in_words()
        if match is None:
            return f"{summary}; how well the outputs match the original's was not measured."
        seen = " on samples that the fit has seen" if self.psnr_seen else ""
        return f"{summary}; the outputs match the original's at {match}{seen}."

    def match_in_words(self) -> str | None:
        """How well the outputs match: the lowest SNR of sounds, else the PSNR; None if not measured."""
        ratios = [output.snr_db for output in self.outputs]
        if ratios and None not in ratios:
            return f"{min(ratio for ratio in ratios if ratio is not None):.1f} dB SNR"
        return None if self.psnr_db is None else f"{self.psnr_db:.1f} dB PSNR"

    def measured_on(self) -> str:
        """Which samples the outputs were compared on, in words."""
        count, fitted = self.psnr_samples, self.calibration_samples
        if self.psnr_seen:
            return f"{count} of the {fitted} samples that the layers were fitted to"
        if self.psnr_heldout:
            return f"{count} held-out samples (the layers were fitted to {fitted} others)"
        drawn = "" if fitted is None else f" (the layers were fitted to {fitted} others)"
        if count == 1:
            return f"1 example input{drawn}"
        return f"{'some' if count is None else count} example inputs{drawn}"
