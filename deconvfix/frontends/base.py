"""What every front end can do: search a model of its kind, rewrite it, and prove what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import OptionError
from deconvfix.fit.regression import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms.base import Init
from deconvfix.grid.flat_field import Run, layer_answer
from deconvfix.grid.periods import Period
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Match, Plan

__all__ = [
    "MOST_SAMPLES",
    "CalibrationData",
    "Findings",
    "FitsToData",
    "Frontend",
    "HasInputs",
    "Kernel",
    "LayerAnswer",
    "LayerFits",
    "Probe",
    "ReadsConverted",
    "Refits",
    "Restoration",
    "Restores",
    "ShowsKernels",
    "Shuffle",
    "Translates",
]

# Of what a layer gets, for a diagnosis: more samples say nothing new about a grid.
MOST_SAMPLES = 8


@dataclass(frozen=True)
class Findings:
    """What a search found.

    Attributes:
        matches: The transposed convolutions, in the model's order.
        notes: Sentences about what could not be seen.
    """

    matches: tuple[Match, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationData:
    """What layers are fitted to, and how.

    Attributes:
        inputs: An iterable of inputs, or the name of a distribution to draw them from.
        example_inputs: Gives the shapes to draw.
        tuning: For `init="tuned"`.
        choose_padding: Choose the border of resize-convolutions by the measured error.
        flat: Inputs on which alone equalized layers must make no grid, or "zeros"; None: on all constants.
        memory: Most memory for the regression of a layer, and for outputs that are kept, in GiB.

    Raises:
        OptionError: If that is none.
    """

    inputs: Iterable[Any] | str
    example_inputs: Any | None
    tuning: Tuning
    choose_padding: bool
    flat: Iterable[Any] | str | None = None
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if not self.memory > 0:
            raise OptionError(
                "memory",
                f"the value is {self.memory!r}",
                "a number above 0 is needed, in GiB",
                "Correct `memory`",
            )


@runtime_checkable
class FitsToData(Protocol):
    """A front end that can fit layers to what the original computes on inputs."""

    @property
    def fits(self) -> tuple[Init, ...]:
        """The fits to data that it knows."""
        ...

    def fit_to_data(
        self, before: Any, after: Any, plan: Plan, data: CalibrationData
    ) -> tuple[Any, Plan, Sequence[str]]:
        """Fits the layers whose `init` asks for it, in place.

        Returns:
            The model, the plan with what was chosen and measured, and notes.
        """
        ...

    def count_samples(
        self, model: Any, inputs: Iterable[Any] | str, example_inputs: Any | None
    ) -> int:
        """How many samples the layers are fitted to."""
        ...

    def drawn_inputs(self, model: Any, distribution: str, seed: int) -> Any | None:
        """One batch of inputs from a distribution, where the model says their shapes; None where not."""
        ...


@runtime_checkable
class ReadsConverted(Protocol):
    """A front end that can read the weights of layers that it has exchanged."""

    def converted_weights(
        self, model: Any, names: Sequence[str]
    ) -> Mapping[str, tuple[ConvTransposeSpec, NDArray[np.float64]]]:
        """The transposed convolutions that exchanged layers are now, away from the border, by name."""
        ...


@runtime_checkable
class ShowsKernels(Protocol):
    """A front end that can show what the layers make of one pixel."""

    def kernels(self, before: Any, after: Any, plan: Plan) -> tuple[Kernel, ...]:
        """Of the layers whose function changed; neither model is changed."""
        ...


@runtime_checkable
class Translates(Protocol):
    """A front end that works on its models in another form: once in, once out."""

    def enter(self, model: Any) -> Any:
        """The model as the other methods take it; the given one is not changed."""
        ...

    def leave(self, converted: Any, model: Any, *, changed: bool, inplace: bool) -> Any:
        """A converted model in the kind of the original.

        Args:
            converted: What became of `enter(model)`.
            model: The original.
            changed: Whether anything was replaced; if not, the original is given back, or a copy.
            inplace: Change the original itself, and return it.
        """
        ...


@runtime_checkable
class HasInputs(Protocol):
    """A front end whose models bring example inputs of their own."""

    def own_inputs(self, model: Any) -> Any | None:
        """The inputs that a model brings, as a pair (args, kwargs); None if it brings none."""
        ...


@dataclass(frozen=True)
class LayerAnswer:
    """What one call of a layer showed for a diagnosis.

    Attributes:
        name: Of the match.
        phases: The layer's answer to a constant input, the mean of what it got in each channel, away from
            the border: (N, C_out, *stride).
        output_size: Spatial.
    """

    name: str
    phases: NDArray[np.float64]
    output_size: tuple[int, ...]

    @classmethod
    def of(
        cls,
        name: str,
        spec: ConvTransposeSpec,
        weight: NDArray[np.float64],
        bias: NDArray[np.float64] | None,
        x: NDArray[Any],
        output_size: tuple[int, ...],
    ) -> LayerAnswer:
        """The answer to the mean in each channel of what the layer got, for its first samples.

        Args:
            name: Of the match.
            spec: The layer.
            weight: (C_in, C_out / groups, *kernel_size).
            bias: (C_out,) or None.
            x: What the layer got, (N, C_in, *L), in any floating-point dtype; not empty.
            output_size: Of the layer's output, spatial.
        """
        means = x[:MOST_SAMPLES].astype(np.float64, copy=False).mean(tuple(range(2, x.ndim)))
        return cls(name, layer_answer(spec, weight, bias, means), output_size)


@dataclass(frozen=True)
class Probe:
    """A model that was run for its diagnosis.

    Attributes:
        layers: Calls of transposed convolutions, in the order in which they ran.
        inputs: The example inputs that are arrays, which `run` takes.
        outputs: The outputs; an empty array stands for one that is no array.
        run: Gives the outputs for other inputs; None if the model was not run.
        unseen: Names of layers that may have run, too, but could not be looked at.
        advice: Sentences about what else makes a grid.
        notes: Sentences about what could not be seen.
    """

    layers: tuple[LayerAnswer, ...] = ()
    inputs: tuple[NDArray[Any], ...] = ()
    outputs: tuple[NDArray[Any], ...] = ()
    run: Run | None = None
    unseen: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shuffle:
    """A pixel shuffle that ran: a convolution before it is a sub-pixel convolution.

    Attributes:
        factors: Of the upsampling, per axis.
        output_size: Spatial size of its output.
    """

    factors: tuple[int, ...]
    output_size: tuple[int, ...]


@dataclass(frozen=True)
class Restoration:
    """What a restoration may do, and what it goes by.

    Attributes:
        inputs: Of the model, one for each sample or batch.
        targets: What it should give on each: its outputs, in NumPy.
        periods: Of the grid, in pixels per axis, by the number of the output.
        seconds: That it may take.
        seed: Of the order of the inputs.
        grow: Names of the layers whose kernels may grow by a tap at each end.
        rate: The learning rate of Adam; Muon's is in proportion. With 4e-3 two networks of three layers ended
            2 and 0.7 dB further away from their goal on pictures unlike theirs, and one that is close to its
            goal from the start 10 dB.
    """

    inputs: Sequence[Any]
    targets: Sequence[Sequence[NDArray[Any]]]
    periods: Mapping[int, Period]
    seconds: float
    seed: int = 0
    grow: tuple[str, ...] = ()
    rate: float = 2e-3


@runtime_checkable
class Restores(Protocol):
    """A front end that can train a model's own weights towards outputs without a grid.

    Attributes:
        can_grow: Whether kernels may grow for it.
    """

    can_grow: bool

    def run(self, model: Any, inputs: Any) -> Probe:
        """Runs a copy, whatever layers it has."""
        ...

    def shuffles(self, model: Any, inputs: Any) -> list[Shuffle]:
        """The pixel shuffles that run: each makes the grid that a transposed convolution makes."""
        ...

    def cycle_spun(
        self, model: Any, inputs: Any, periods: Mapping[int, Period], most: int, seed: int
    ) -> list[NDArray[Any]] | None:
        """The mean over shifts of the input, shifted back; None where input and output do not correspond."""
        ...

    def drawn_batches(self, example_inputs: Any, distribution: str, seed: int) -> list[Any]:
        """Inputs drawn in the shapes of an example."""
        ...

    def with_arrays(self, inputs: Any, arrays: Sequence[NDArray[Any]]) -> Any:
        """The same inputs with other values."""
        ...

    def constant_like(self, inputs: Any, seed: int) -> Any:
        """Each sample everywhere as one of its pixels."""
        ...

    def varied(self, inputs: Any, seed: int) -> Any | None:
        """The same pictures mirrored, turned, brighter, blurred; None for what is no picture."""
        ...

    def restore(self, model: Any, task: Restoration) -> Any:
        """A copy of the model, trained."""
        ...

    def cost(self, model: Any, inputs: Any) -> float:
        """Operations of one run."""
        ...


class LayerFits(Protocol):
    """Fits of one model's layers to outputs without a grid.

    Attributes:
        names: Of the layers, in the order in which they run.
    """

    names: tuple[str, ...]

    def refit(self, names: Sequence[str], weight: float) -> tuple[Any, Plan, list[str]]:
        """The model with some layers fitted, what was done, and notes on layers that could not be.

        Args:
            names: Of the layers.
            weight: Of what is locked to the phase, relative to all other errors.
        """
        ...


@runtime_checkable
class Refits(Protocol):
    """A front end that can fit layers in closed form to outputs without a grid, without training."""

    def runner(self, model: Any) -> Callable[[Any], Probe]:
        """Runs a model on one input after the other: inputs, outputs and `run` of each."""
        ...

    def refitter(self, model: Any, batches: Sequence[Any], most: int, seed: int) -> LayerFits:
        """For one model.

        Args:
            model: The original; it is not changed.
            batches: Inputs to fit to.
            most: Shifts for each of them.
            seed: Of their choice.
        """
        ...


class Frontend(Protocol):
    """Operations on one kind of model. Nothing here keeps state."""

    def prepare(self, model: Any, example_inputs: Any | None, *, inplace: bool) -> Any:
        """The model to work on: a copy, unless `inplace`."""
        ...

    def find(self, model: Any, example_inputs: Any | None) -> Findings:
        """Searches the model; with example inputs it is run once, on a copy."""
        ...

    def probe(self, model: Any, example_inputs: Any | None, matches: Sequence[Match]) -> Probe:
        """Runs a copy on the example inputs, if there are any, and tells what a diagnosis needs."""
        ...

    def apply(self, model: Any, plan: Plan) -> Any:
        """Carries out the plan on the model itself and returns it (a bare layer is exchanged)."""
        ...

    def left(self, model: Any, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """Names of the transposed convolutions that still run, beyond those the plan keeps."""
        ...

    def verify(
        self, before: Any, after: Any, inputs: Sequence[Any], plan: Plan | None
    ) -> ParityReport:
        """Compares a converted model with the original, both of this kind."""
        ...

    def psnr_db(self, before: Any, after: Any, example_inputs: Any) -> float | None:
        """PSNR of the outputs of `after` against those of `before`; None without real outputs."""
        ...


@dataclass(frozen=True)
class Kernel:
    """The answer of a layer to one pixel, for the pair of channels with the largest weight.

    Attributes:
        layer: Name of the layer.
        before: Its kernel with a stride of pixels around it, one to three axes.
        after: The same of the converted layer.
    """

    layer: str
    before: NDArray[Any]
    after: NDArray[Any]
