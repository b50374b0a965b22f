"""The conversion report: plain data first; JSON, text and HTML are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from deconvfix import __version__
from deconvfix.core.decibels import decibels_in_words
from deconvfix.diagnose.fidelity import Fidelity, Tone
from deconvfix.errors import printable
from deconvfix.extras import undrawn
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Decision, Plan, Replaced
from deconvfix.report.curves import SamplesCurve, StrengthCurve
from deconvfix.report.tally import Tallies

if TYPE_CHECKING:
    from deconvfix.diagnose.evidence import Evidence
    from deconvfix.runtimes.proof import RuntimeReport

__all__ = [
    "ConversionReport",
    "LayerReport",
    "finite",
    "layer_reports",
    "layers_with_ripples",
    "versions",
]

REPORT_FORMAT = "deconvfix.report/1"

# Rows of a table of tones.
_MOST_TONES = 12


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer; see `deconvfix.plan.Decision` for the fields.

    Of fitted layers also the ripple of the answer to a constant, by the weights, before and after. The steps
    are those that a replaced layer consists of, in order.
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
    steps: tuple[str, ...] = ()


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
        in_runtime: The proof in the runtime of the target, if that was asked for.
        tallies: What both files consist of, where they are ONNX files.
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
    in_runtime: RuntimeReport | None = None
    tallies: Tallies | None = None

    @property
    def ok(self) -> bool:
        """Whether all proofs that were made hold and nothing was missed."""
        proofs = [parity for parity in (self.parity, self.export) if parity is not None]
        in_runtime = self.in_runtime is None or self.in_runtime.ok
        return all(proof.ok for proof in proofs) and in_runtime and not self.still_running

    @property
    def proven(self) -> bool:
        """Whether the models ran and agree: on all outputs, or on layers where outputs change on purpose."""
        ran = any(proof.ran for proof in (self.parity, self.export) if proof is not None)
        measured = self.fidelity is not None and self.fidelity.psnr_db is not None
        compared = self.parity is not None and bool(self.parity.comparisons)
        return self.ok and (ran or (measured and compared))

    def outcome(self) -> str:
        """What was proven, and what was not, in a few words; "" if nothing was changed."""
        if not any(layer.decision == "replaced" for layer in self.layers):
            return ""
        if not self.ok:
            return "NOT VERIFIED"
        if self.proven:
            worse = self.fidelity is not None and self.fidelity.looks_worse
            return "verified as a computation, but the visible grid rose" if worse else "verified"
        if self.parity is None or not self.parity.comparisons:
            return "not verified, as nothing was run"
        return "layers verified, the model was not run"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        # Arrays first, as asdict would copy them.
        data = asdict(replace(self, evidence=None))
        del data["evidence"]  # arrays; the HTML page shows them
        if self.in_runtime is not None:
            data["in_runtime"] = self.in_runtime.to_dict()
        return {"format": REPORT_FORMAT, "ok": self.ok, **finite(data)}

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def change(self) -> str | None:
        """What was changed on purpose, in one or two sentences; None for exact forms."""
        if self.fidelity is None:
            return None
        sentence = self.fidelity.sentence()
        last = None if self.samples_curve is None else self.samples_curve.points[-1].psnr_db
        if last is not None:
            sentence += f" On samples that the fit has not seen: {last:.1f} dB."
        return sentence

    def verdict(self) -> str:
        """One sentence."""
        counts = {
            kind: sum(layer.decision == kind for layer in self.layers)
            for kind in ("replaced", "kept", "refused")
        }
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        found = len(self.layers)
        what = f"{found} transposed convolution{'s' if found != 1 else ''} found"
        return (
            "; ".join(filter(None, (f"{what}: {parts or 'nothing to do'}", self.outcome()))) + "."
        )

    def summary(self, most: int = 8) -> str:
        """The verdict and what happened to each layer, as plain lines of text.

        Args:
            most: So many layers are named.
        """
        whole = self.input if self.output is None else f"{self.input} -> {self.output}"
        lines = [f"{whole}: {self.verdict()}"]
        for layer in self.layers[:most]:
            form = f" ({layer.form})" if layer.form else ""
            lines.append(f"  {layer.name or '(model)'}: {layer.decision}{form}, {layer.reason}")
        if most and len(self.layers) > most:
            lines.append(f"  and {len(self.layers) - most} more layers")
        return printable("\n".join(filter(None, (*lines, self.change()))))

    def __str__(self) -> str:
        return self.summary()

    def to_html(self) -> str:
        """A page of its own, without scripts or anything from the network."""
        import jinja2

        from deconvfix.report.curves import draw_curve
        from deconvfix.report.pictures import KERNELS, draw

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("deconvfix.report", "."),
            # Names come from the model's file, so everything is escaped.
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        without = undrawn()
        drawn = () if self.evidence is None or without else draw(self.evidence)
        outputs = () if self.fidelity is None else self.fidelity.outputs
        return environment.get_template("report.html.jinja").render(
            report=self,
            pictures=drawn,
            curve_picture=None if self.curve is None or without else draw_curve(self.curve),
            undrawn=without if self.evidence or self.curve else None,
            kernels=KERNELS,
            tones_of=[
                (output, output.strongest(_MOST_TONES)) for output in outputs if output.tones
            ],
            ripple=lambda value: "" if value is None else decibels_in_words(value),
            decibels=lambda value: "below 10 dB" if value is None else f"{value:.1f} dB",
            frequency=Tone.in_words,
        )


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
        steps=_steps(decision),
    )


def _steps(decision: Decision) -> tuple[str, ...]:
    if not isinstance(decision, Replaced):
        return ()
    return tuple(type(step).__name__ for step in decision.compiled().steps)


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become strings."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


def layers_with_ripples(
    plan: Plan, ripples: Mapping[str, tuple[float, float]]
) -> tuple[LayerReport, ...]:
    """The decisions as the report shows them, with the ripples of the layers that change."""
    layers = []
    for layer in layer_reports(plan):
        before, after = ripples.get(layer.name, (None, None))
        layers.append(replace(layer, ripple_db_before=before, ripple_db_after=after))
    return tuple(layers)


def versions() -> dict[str, str]:
    """Versions of the packages that take part, as far as they are installed."""
    found = {"deconvfix": __version__}
    for name in ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
