"""What front ends share about nearest upsampling in front of convolutions; `core.folded` has the algebra."""

from __future__ import annotations

from typing import Any, Protocol

from deconvfix.errors import Refusal
from deconvfix.frontends.base import Findings

__all__ = [
    "CALLED",
    "NOTHING_SAVED",
    "NOT_A_STORED_WEIGHT",
    "NOT_WHOLE",
    "NO_INPUTS",
    "OTHER_BORDER",
    "OTHER_STEPS",
    "READ_ELSEWHERE",
    "SERVES_OTHERS",
    "WIDE_REFLECTION",
    "Folds",
    "find_with_folds",
    "foldable_note",
]

CALLED = Refusal(
    "nearest upsampling in front of it is not folded: it is a function call in the graph",
    "a layer of its own is exchanged",
    "Fold the module before it is traced, or the program (torch.export), or the ONNX file",
)
_LEFT = "Nothing: this upsampling and its convolution stay as they are"
NOT_A_STORED_WEIGHT = Refusal(
    "nearest upsampling in front of it is not folded: its weight is not stored as floating-point numbers",
    "sums of its taps are stored instead",
    _LEFT,
)
NOTHING_SAVED = Refusal(
    "nearest upsampling in front of it is not folded: it has too few taps",
    "more taps than the upsampling repeats pixels are needed to save multiply-accumulates",
    _LEFT,
)
NOT_WHOLE = Refusal(
    "upsampling in front of it is not folded: it does not repeat each pixel a whole number of times, or how "
    "often is not known before it runs",
    "whole factors are needed, and nearest neighbours",
    _LEFT,
)
READ_ELSEWHERE = Refusal(
    "nearest upsampling in front of it is not folded: the upsampled map is read elsewhere too",
    "it must be read by this convolution alone",
    _LEFT,
)
SERVES_OTHERS = Refusal(
    "nearest upsampling in front of it is not folded: what upsamples serves other layers too, or the layer "
    "gets other maps too",
    "both must run for each other alone",
    _LEFT,
)
NO_INPUTS = (
    "No inputs: nearest upsampling in front of convolutions is seen by a run; give some to find it."
)
OTHER_STEPS = Refusal(
    "nearest upsampling in front of it is not folded: its stride or dilation is not 1",
    "both must be 1",
    _LEFT,
)
OTHER_BORDER = Refusal(
    "nearest upsampling in front of it is not folded: of the border of the upsampled map",
    "zeros, or copies of the border pixels and no zeros around them, are needed",
    _LEFT,
)
WIDE_REFLECTION = Refusal(
    "nearest upsampling in front of it is not folded: the upsampled map is reflected by as many pixels as "
    "each pixel has copies, or more",
    "a narrower reflection meets copies of one pixel, a wider one is no border of the small map",
    _LEFT,
)


class Folds(Protocol):
    """A front end that can fold nearest upsampling and a convolution into a transposed convolution."""

    def find_upsampled(self, model: Any, inputs: Any | None) -> Findings:
        """Such pairs, described as the transposed convolutions that they are; and why others are none.

        Args:
            model: Not changed. `apply` folds what a plan replaces of the matches.
            inputs: To find them by a run, where that is needed.
        """
        ...


def find_with_folds(frontend: Any, model: Any, inputs: Any | None) -> Findings:
    """The transposed convolutions of a model, and behind them the pairs of upsampling and a convolution."""
    findings: Findings = frontend.find(model, inputs)
    more = frontend.find_upsampled(model, inputs)
    return Findings((*findings.matches, *more.matches), (*findings.notes, *more.notes))


def foldable_note(frontend: Any, model: Any, inputs: Any | None) -> tuple[str, ...]:
    """A sentence on the pairs that could be folded; none where there are none."""
    matches = frontend.find_upsampled(model, inputs).matches
    if not matches:
        return ()
    count = len(matches)
    which = "1 nearest upsampling" if count == 1 else f"{count} nearest upsamplings"
    return (
        f"{which} in front of a convolution: `convert --fold` writes the two as one sub-pixel convolution, "
        "the same function with fewer multiply-accumulates.",
    )
