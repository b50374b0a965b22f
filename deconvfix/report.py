"""The conversion report: plain data first; JSON, text and HTML are made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deconvfix.artifacts import LOWEST_DB
from deconvfix.flat_field import FlatField
from deconvfix.parity import ParityReport
from deconvfix.plan import Decision, Plan

if TYPE_CHECKING:
    from deconvfix.curve import StrengthCurve
    from deconvfix.evidence import Evidence

__all__ = [
    "ConversionReport",
    "Fidelity",
    "LayerReport",
    "OutputChange",
    "SamplesCurve",
    "SamplesPoint",
    "Tone",
    "decibels_in_words",
    "finite",
    "layer_reports",
]

REPORT_FORMAT = "deconvfix.report/1"

# Rows of a table of tones.
_MOST_TONES = 12
# A gain of the last step below which further calibration samples are not recommended.
_WORTH_MORE_DB = 0.5


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
        known = [each for each in (self.ratio_db_before, self.ratio_db_after) if each is not None]
        return max(known, default=LOWEST_DB)

    def in_words(self) -> str:
        """The frequency with its unit."""
        if self.hz is not None:
            return f"{self.hz:g} Hz"
        at = ", ".join(f"{each:.4g}" for each in self.frequency)
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
    """

    index: int
    period: tuple[int, ...]
    flat_before: FlatField | None
    flat_after: FlatField | None
    tones: tuple[Tone, ...]

    def strongest(self, most: int) -> tuple[Tone, ...]:
        """The tones that stand out most, before or after."""
        return tuple(sorted(self.tones, key=lambda each: -each.strength)[:most])


@dataclass(frozen=True)
class Fidelity:
    """How far an intended change moves the output, and what becomes of the grid.

    The last calibration batch is what is looked at, or else the example inputs; without either, what
    needs a run is None. Where calibration inputs were fitted to, the distance is that on inputs which
    the fit has seen: `SamplesCurve` has it on others.

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

    def sentence(self) -> str:
        """What the change did, for the owner of the model."""
        before, after = self.network_ripple_db_before, self.network_ripple_db_after
        what = "The grid on a constant input"
        if before is None or after is None:
            before, after = self.ripple_db_before, self.ripple_db_after
            what = "The strongest grid of a layer on a constant input"
        verb = "fell" if after < before else "went"
        told = f"{what} {verb} from {decibels_in_words(before)} to {decibels_in_words(after)}"
        loudest = max(
            (each for each in self.outputs if each.flat_before and each.flat_after),
            key=lambda each: each.flat_before.rms if each.flat_before else 0.0,
            default=None,
        )
        if loudest is not None and before > 0:
            # Sound has no level that a ripple could be told relative to.
            assert loudest.flat_before
            assert loudest.flat_after
            old, new = loudest.flat_before.rms, loudest.flat_after.rms
            verb = "fell" if new < old else "went"
            told = f"The tone on a constant input {verb} from an rms of {old:.2g} to {new:.2g}"
        if self.psnr_db is None:
            return f"{told}; how close the outputs stay was not measured."
        seen = " on samples that the fit has seen" if self.psnr_seen else ""
        return f"{told}; the outputs agree with the original to {self.psnr_db:.1f} dB PSNR{seen}."

    def measured_on(self) -> str:
        """Which samples the outputs were compared on, in words."""
        count, fitted = self.psnr_samples, self.calibration_samples
        if self.psnr_seen:
            return f"{count} of the {fitted} samples that the layers were fitted to"
        drawn = "" if fitted is None else f" (the layers were fitted to {fitted} others)"
        return f"{'some' if count is None else count} example input{'s'[count == 1 :]}{drawn}"


@dataclass(frozen=True)
class SamplesPoint:
    """A calibrated fit to some of the samples.

    Attributes:
        samples: How many.
        psnr_db: Converted against original on the held-out samples; None without real outputs.
    """

    samples: int
    psnr_db: float | None


@dataclass(frozen=True)
class SamplesCurve:
    """How the outputs come closer with the number of calibration samples.

    Attributes:
        heldout: On so many samples, which no fit has seen, the outputs were compared.
        points: The fewest samples first; each set is a part of the next.
    """

    heldout: int
    points: tuple[SamplesPoint, ...]

    def sentence(self) -> str:
        """What the last step gained."""
        *_, one, last = self.points
        if one.psnr_db is None or last.psnr_db is None:
            return "There is no output to compare."
        gained = last.psnr_db - one.psnr_db
        advice = "more would help" if gained >= _WORTH_MORE_DB else "more would change little"
        return f"From {one.samples} to {last.samples} samples: {gained:+.1f} dB; {advice}."


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer; see `deconvfix.plan.Decision` for the fields.

    Of fitted layers also the ripple of the answer to a constant, by the weights, before and after.
    """

    name: str
    op: str
    decision: str
    form: str | None
    reason: str
    exact: bool
    relative_residual: float | None
    macs_before: int | None
    macs_after: int | None
    ripple_db_before: float | None = None
    ripple_db_after: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, and the proof.

    Attributes:
        input: The model: a path, or its class.
        output: Where it was written, None if it was not.
        to: The form that was asked for.
        layers: One entry for each transposed convolution.
        parity: Converted against original (for fitted forms: against their definition); None if
            it was switched off.
        export: Parity of the written ONNX file in ONNX Runtime; None if none was written.
        fidelity: For fitted forms; None for exact ones.
        still_running: Transposed convolutions that ran after the conversion although they were to
            be replaced. None without example inputs.
        notes: What could not be seen, what was left out.
        versions: Versions of deconvfix and of the libraries it ran with.
        command: The command line that does the same again.
        hashes: SHA-256 of the files that were read and written.
        curve: Fidelity against ripple over the strength, where it was asked for.
        evidence: What the HTML page draws.
        samples_curve: How the distance falls with the number of calibration samples, if that was
            asked for.
    """

    input: str
    output: str | None
    to: str
    layers: tuple[LayerReport, ...]
    parity: ParityReport | None
    export: ParityReport | None = None
    fidelity: Fidelity | None = None
    still_running: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    curve: StrengthCurve | None = None
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    samples_curve: SamplesCurve | None = None

    @property
    def ok(self) -> bool:
        """Whether all proofs that were made hold and nothing was missed."""
        proofs = [each for each in (self.parity, self.export) if each is not None]
        return all(each.ok for each in proofs) and not self.still_running

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(replace(self, evidence=None))
        del data["evidence"]  # arrays; the HTML page shows them
        return {"format": REPORT_FORMAT, "ok": self.ok, **finite(data)}

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def change(self) -> str | None:
        """What was changed on purpose, in one or two sentences; None for exact forms."""
        if self.fidelity is None:
            return None
        told = self.fidelity.sentence()
        last = None if self.samples_curve is None else self.samples_curve.points[-1].psnr_db
        if last is not None:
            told += f" On samples that it has not seen: {last:.1f} dB."
        return told

    def verdict(self) -> str:
        """One sentence."""
        counts = {
            kind: sum(layer.decision == kind for layer in self.layers)
            for kind in ("replaced", "kept", "refused")
        }
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        found = len(self.layers)
        what = f"{found} transposed convolution{'s' if found != 1 else ''} found"
        outcome = "verified" if self.ok and self.parity else ("ok" if self.ok else "NOT VERIFIED")
        return f"{what}: {parts or 'nothing to do'}; {outcome}."

    def to_html(self) -> str:
        """A page of its own, without scripts or anything from the network."""
        import jinja2

        from deconvfix.curve import draw_curve
        from deconvfix.evidence import KERNELS, draw

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("deconvfix"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        drawn = () if self.evidence is None else draw(self.evidence)
        outputs = () if self.fidelity is None else self.fidelity.outputs
        return environment.get_template("report.html.jinja").render(
            report=self,
            pictures=drawn,
            curve_picture=None if self.curve is None else draw_curve(self.curve),
            kernels=KERNELS,
            told=[(each, each.strongest(_MOST_TONES)) for each in outputs if each.tones],
            ripple=lambda value: "" if value is None else decibels_in_words(value),
            decibels=lambda value: "below 10 dB" if value is None else f"{value:.1f} dB",
            frequency=Tone.in_words,
        )


def decibels_in_words(value: float) -> str:
    """A ripple for people: the number, or what its ends stand for."""
    if value <= LOWEST_DB:
        return "none at all"
    return f"{value:.1f} dB" if value < -LOWEST_DB else "nothing but grid"


def layer_reports(plan: Plan) -> tuple[LayerReport, ...]:
    """The decisions of a plan as the report shows them."""
    return tuple(map(_layer_report, plan.decisions))


def _layer_report(decision: Decision) -> LayerReport:
    return LayerReport(
        name=decision.name,
        op=decision.op,
        decision=decision.decision,
        form=decision.form,
        reason=decision.reason,
        exact=decision.exact,
        relative_residual=decision.relative_residual,
        macs_before=decision.macs_before,
        macs_after=decision.macs_after,
    )


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become strings."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
