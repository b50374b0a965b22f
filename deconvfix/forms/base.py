"""What every form has: a name, facts about it, and pure functions of a `ConvTransposeSpec`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.folded import Folding
from deconvfix.core.options import known, option
from deconvfix.core.rearrange import Verb
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Crop, Interpolation, Pad, PadMode, Pairs, Step
from deconvfix.errors import OptionError, Refusal
from deconvfix.fit.design import Design, Phase
from deconvfix.targets.writing import Convolution, Shuffle, Structure

__all__ = [
    "FITTED_TO_DATA",
    "KEEP",
    "UPSAMPLING",
    "Candidate",
    "Compiled",
    "Design",
    "Form",
    "Init",
    "Lacks",
    "Merit",
    "Need",
    "Phase",
    "ReadWeight",
    "Recommendation",
    "Settings",
    "Settled",
    "too_large",
    "zero_border",
]

Init = Literal["exact", "fit", "random", "calibrated", "tuned"]
# Fits that need inputs. A form starts them from its fit to the weights.
FITTED_TO_DATA: tuple[Init, ...] = ("calibrated", "tuned")
ReadWeight = Callable[[], NDArray[np.float64]]
# Stands for a form where a layer stays as it is.
KEEP = "keep"

# A converted weight may grow by the factor below without a word. Past it, it is refused from this
# many elements on (512 MiB in float32): only strange geometries get there, such as a dilation of 1e5.
_MOST_GROWTH = 8
_MOST_ELEMENTS = 2**27
# Beyond these a kernel is larger than most feature maps; recipes may be anybody's.
_LARGEST_GROW = 32
_LONGEST_REACH = 1024


@dataclass(frozen=True)
class Settings:
    """The choices that a form leaves open, declared as options. None means: choose for this layer.

    Raises:
        OptionError: If a value does not exist.
    """

    interpolation: Interpolation = option(
        "nearest",
        "How feature maps are upsampled before the convolution.",
        applies="chooses_border",
    )
    padding_mode: PadMode | None = option(
        None,
        "How upsampled feature maps are extended at the border. Default: zeros where the kernel divides by "
        "that of the upsampling (the layer then stays the same function); elsewhere the mode that fits the "
        "calibration inputs best, or reflect without calibration.",
        applies="chooses_border",
    )
    init: Init | None = option(
        None,
        "Where the new weights come from: exact (refuse layers whose function would change), fit (least "
        "squares on the weights), calibrated (regression on what the original computes for given inputs), "
        "tuned (calibrated, then distilled from the original; torch modules only) or random. Default: "
        "calibrated with calibration inputs; without, exact, and a refusal where that is impossible.",
    )
    seed: int = option(
        0, "Seed of everything random: drawn inputs, the order of distillation, random weights."
    )
    grow: int = option(
        0,
        "Extra kernel taps on each side.",
        more="On axes with a stride. They bring the outputs closer to the original at a higher cost; an "
        "equalized layer then has another kernel_size and padding.",
        applies="can_grow",
    )
    reach: int = option(
        4,
        "Radius of the local mean, in pixels of the layer's input.",
        more="A larger one stays closer to the original; a smaller one leaves less of a grid beside edges.",
        applies="has_means",
    )
    convolution: Convolution | None = option(
        None,
        "The convolutions before the pixel shuffle: cropped (one, and a crop of its result), union (one over "
        "the windows of all phases, without the crop) or phases (one for each phase, without zero taps; ONNX "
        "files only). Default: cropped, or what the target prefers.",
        applies="shuffles",
    )
    shuffle: Shuffle | None = option(
        None,
        "How ONNX files write the pixel shuffle: crd or dcr (DepthToSpace of that mode), whole (Reshape, "
        "Transpose, Reshape), axes (the same for one axis after the other), slices (Split and Concat) or "
        "identity (a depthwise ConvTranspose whose kernel moves pixels). Default: crd where it applies, else "
        "axes, or what the target prefers.",
        applies="shuffles",
    )
    structure: Structure | None = option(
        None,
        "What the numbers of a stored weight are used for in ONNX files, where it has them: none, reduced "
        "(diagonal weights as depthwise layers, without planes of zeros), passes or matrices (separable ones "
        "as a convolution or a matrix product for each axis), upsampling (constant ones, nearest). "
        "Default: the fastest that applies.",
        applies="is_exact",
    )
    fold: bool | None = option(
        None,
        "Write nearest upsampling in front of a convolution as one sub-pixel convolution: the same function "
        "with fewer multiply-accumulates. Also where the model has the two already. --no-fold: nowhere. "
        "Default: the resize-convolutions that are written into ONNX files.",
        applies="folds",
    )
    strength: float = option(
        1.0,
        "How much of the grid is removed, from 0 (none: the layer stays as it is) to 1 (all of it). Less "
        "keeps the rest of the output closer to the original.",
        more="`deconvfix.strength_curve` measures what each strength does to a network.",
        applies="has_strength",
        metavar="0..1",
    )

    def __post_init__(self) -> None:
        known("interpolation", self.interpolation, get_args(Interpolation))
        known("padding_mode", self.padding_mode, (None, *get_args(PadMode)))
        known("init", self.init, (None, *get_args(Init)))
        known("convolution", self.convolution, (None, *get_args(Convolution)))
        known("shuffle", self.shuffle, (None, *get_args(Shuffle)))
        known("structure", self.structure, (None, *get_args(Structure)))
        known("fold", self.fold, (None, True, False))
        if type(self.seed) is not int:
            raise OptionError(
                "seed", f"the value is {self.seed!r}", "an integer is needed", "Correct `seed`"
            )
        if type(self.grow) is not int or not 0 <= self.grow <= _LARGEST_GROW:
            raise OptionError(
                "grow",
                f"the value is {self.grow!r}",
                f"a number of taps from 0 to {_LARGEST_GROW} is needed",
                "Correct `grow`",
            )
        if type(self.reach) is not int or not 1 <= self.reach <= _LONGEST_REACH:
            raise OptionError(
                "reach",
                f"the value is {self.reach!r}",
                f"a number of pixels from 1 to {_LONGEST_REACH} is needed",
                "Correct `reach`",
            )
        number = isinstance(self.strength, (int, float)) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength) or not 0 <= self.strength <= 1:
            raise OptionError(
                "strength",
                f"the value is {self.strength!r}",
                "a number from 0 (the layer as it is) to 1 (free of the grid) is needed",
                "Correct `strength`",
            )


@dataclass(frozen=True)
class Settled:
    """Settings without a None, and what they mean for one layer.

    Attributes:
        settings: The choices made.
        exact: Whether the converted layer computes the same function, border included.
        relative_residual: |new kernel - old kernel| / |old kernel| of a fit, None for exact forms.
        note: One clause for the report.
        needs: What the layer must have for this on top of `Form.needs`.
        form: The name of another form that this layer gets instead, or KEEP where it stays as it is.
            None: the form that settled it.
    """

    settings: Settings
    exact: bool
    relative_residual: float | None
    note: str
    needs: tuple[Need, ...] = ()
    form: str | None = None


@dataclass(frozen=True)
class Compiled:
    """A layer in a new form.

    Attributes:
        steps: What the layer does.
        weight: Verbs from the form's kernel (`Form.fit`, laid out as the transposed convolution's
            weight, (C_in, C_out / groups, *taps)) to the weight of the steps' convolution.
        bias: Verbs from the layer's bias to the bias that the steps take.
        macs_per_position: Multiply-accumulates for each input pixel of the transposed convolution.
    """

    steps: tuple[Step, ...]
    weight: tuple[Verb, ...]
    bias: tuple[Verb, ...]
    macs_per_position: int


class Need(Enum):
    """What a form asks of the layer, or of the model that holds it. A search says which of it is lacking."""

    STORED_WEIGHT = "a stored weight of the layer's own"
    SETTABLE_WEIGHT = "a weight that can be set to other values"
    OWN_MODULE = "a module that runs torch's own layer and nothing else"
    OWN_PLACE = "a place where a layer of another kind or shape can stand"
    NEAREST_UPSAMPLING = "nearest-neighbour upsampling"
    LINEAR_UPSAMPLING = "linear upsampling"
    LOCAL_MEANS = "local means"


UPSAMPLING: Mapping[Interpolation, Need] = {
    "nearest": Need.NEAREST_UPSAMPLING,
    "linear": Need.LINEAR_UPSAMPLING,
}
Lacks = Mapping[Need, Refusal]


class Merit(IntEnum):
    """How well a form suits a layer; the highest is recommended."""

    KEEPS_THE_GRID = 0
    REMOVES_THE_GRID = 1
    REMOVES_THE_GRID_KEEPS_DETAIL = 2
    REMOVES_THE_GRID_KEEPS_LAYER = 3
    SAME_FUNCTION = 4
    SAME_FUNCTION_SIMPLER = 5


@dataclass(frozen=True)
class Candidate:
    """A layer that forms are recommended for.

    Attributes:
        spec: Its geometry, with a stride above 1 on some axis.
        weight: (C_in, C_out / groups, *kernel_size); None when it is computed while the model runs.
        has_grid: Whether its phase sums differ by more than the rounding of the stored weights; None
            without a weight.
        lacks: What the layer or its model lacks.
    """

    spec: ConvTransposeSpec
    weight: NDArray[np.float64] | None
    has_grid: bool | None
    lacks: Lacks

    def lacks_any(self, needs: Sequence[Need]) -> bool:
        """Whether one of the needs is lacking."""
        return any(need in self.lacks for need in needs)


@dataclass(frozen=True)
class Recommendation:
    """What to do about a layer.

    Attributes:
        form: The name of a form, or KEEP for the layer as it is.
        reason: A sentence: why, and at what cost.
        relative_macs: Multiply-accumulates of that form, relative to the layer.
    """

    form: str
    reason: str
    relative_macs: float


class Form(ABC):
    """A way to write a transposed convolution. Nothing here keeps state.

    Everything that the rest of the package must know about a form it says here: code outside of this
    folder asks for these facts and never for a form's name.

    Attributes:
        name: What the option `to` calls it.
        summary: What it is, in the words of the command's help.
        is_exact: It never changes the function of a layer, and needs no stored weight.
        keeps_layer: The layer stays the transposed convolution that it is, with other weights.
        has_strength: It can remove a part of the grid only.
        can_grow: Its kernel can have more taps than the trained one.
        chooses_border: It leaves open how feature maps are extended at the border.
        has_means: It takes local means of the layer's input.
        shuffles: Its convolution computes the phases of a pixel shuffle.
        folds: Nearest upsampling and a convolution can be folded while it is written.
        evens_sums: It is free of the grid because the sums of its kernel's phases are equal.
        tunes_from_weights: A distillation starts from its fit to the weights, not from a calibrated one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    is_exact: ClassVar[bool] = False
    keeps_layer: ClassVar[bool] = False
    has_strength: ClassVar[bool] = False
    can_grow: ClassVar[bool] = False
    chooses_border: ClassVar[bool] = False
    has_means: ClassVar[bool] = False
    shuffles: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    evens_sums: ClassVar[bool] = False
    tunes_from_weights: ClassVar[bool] = False

    def needs(self, settings: Settings) -> tuple[Need, ...]:
        """What a layer must have before its weight is looked at; the first that it lacks is the refusal."""
        return (Need.OWN_PLACE, Need.STORED_WEIGHT, Need.OWN_MODULE)

    def why_untouched(self, settings: Settings) -> str | None:
        """Why every layer stays as it is, whatever it is: a clause for the report; None if it does not."""
        return None

    @abstractmethod
    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """Decides what is open, looking at the weight where that matters and where there is one."""

    @abstractmethod
    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """Steps and rearrangements; `settings` come from `settle`."""

    @abstractmethod
    def fit(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The form's kernel for a weight of shape (C_in, C_out / groups, *kernel_size)."""

    @abstractmethod
    def spread(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """The transposed convolution that the new layer is, away from the border, with that kernel.

        Where the new layer is none, because it takes local means: the one that it is on constant inputs.
        """

    def equivalent(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """The transposed convolution that the new layer is after `fit`; see `spread`."""
        return self.spread(spec, settings, self.fit(spec, settings, weight))

    def design(self, spec: ConvTransposeSpec, settings: Settings) -> Design | None:
        """The form as a linear model of its kernel; None if it is exact and nothing is fitted."""
        return None

    def folding(self, spec: ConvTransposeSpec, settings: Settings) -> Folding | None:
        """How the layer is written as the exact form of another one; None where it is not."""
        return None

    def words_of_fold(self, spec: ConvTransposeSpec, settings: Settings) -> str:
        """Whether the layer is folded, as a clause for the report; empty where that is not asked for."""
        return ""

    def joined(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The form's kernel, of one for which nothing is folded."""
        return kernel

    def parted(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The kernel that comes closest to one of the form where nothing is folded."""
        return kernel

    def recommend(self, candidate: Candidate) -> tuple[Merit, Recommendation] | None:
        """What it would bring to a layer, and how well that suits; None if it does not suit at all."""
        return None

    def relative_macs(self, spec: ConvTransposeSpec, settings: Settings) -> float:
        """Multiply-accumulates of the new layer over those of the transposed convolution."""
        return self.compile(spec, settings).macs_per_position / spec.macs_per_position()


def zero_border(conv: Conv, amounts: Pairs) -> tuple[Step, ...]:
    """A convolution (padding 0) behind a border of zeros, `(begin, end)` per axis; negative amounts crop.

    Zeros that both ends share become the convolution's own padding. Padding comes before cropping,
    so that an input shorter than the crop still gets the right output: bias alone, by definition.
    """
    # Convolutions of torch pad both ends alike, so only what the ends share can be theirs.
    own = tuple(max(0, min(pair)) for pair in amounts)
    rest = [(b - o, e - o) for (b, e), o in zip(amounts, own, strict=True)]
    pads = tuple((max(b, 0), max(e, 0)) for b, e in rest)
    crops = tuple((max(-b, 0), max(-e, 0)) for b, e in rest)
    steps: list[Step] = []
    if any(map(any, pads)):
        steps.append(Pad(pads, "zeros"))
    if any(map(any, crops)):
        steps.append(Crop(crops))
    return (*steps, replace(conv, padding=own))


def too_large(old: int, new: int) -> Refusal | None:
    """Refuses a weight that would explode; `old` and `new` count elements."""
    if new <= max(_MOST_ELEMENTS, _MOST_GROWTH * old):
        return None
    return Refusal(
        f"the converted weight would have {new:,} elements instead of {old:,}",
        f"at most {_MOST_ELEMENTS:,} elements or {_MOST_GROWTH} times the original are written",
        "Keep this layer (exclude it)",
    )
