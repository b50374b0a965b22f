"""What front ends share about convolutions in front of pixel shuffles; `core.shuffled` has the algebra."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from deconvfix.errors import Refusal
from deconvfix.failures import parity_error
from deconvfix.parity.bounds import ParityReport

__all__ = [
    "SHUFFLED_LAYER",
    "UNSEEN",
    "ShowsShuffles",
    "check_same",
    "shown",
    "upsampling_notes",
]

# What another form, or a kernel of another size, cannot take the place of.
SHUFFLED_LAYER = Refusal(
    "it is a convolution in front of a pixel shuffle",
    "another form, and a larger kernel, are for transposed convolutions",
    "Use the form 'equalized' without `grow`, which corrects it in place",
)


_NOT_IN_PLACE = (
    "Convolutions in front of pixel shuffles stay as they are with `inplace`: convert a copy to have them "
    "corrected."
)
UNSEEN = (
    "No inputs: whether a convolution stands in front of a pixel shuffle is seen by a run; give some to have "
    "such layers found."
)


def upsampling_notes(shuffles: int, resizes: int) -> tuple[str, ...]:
    """Sentences about upsampling that is not corrected.

    Args:
        shuffles: Pixel shuffles of something else than the output of a plain convolution.
        resizes: Upsampling by interpolation.
    """
    notes = []
    if resizes:
        what = "upsampling" if resizes == 1 else "upsamplings"
        notes.append(
            f"{resizes} {what} by interpolation: a constant stays a constant there, which makes no grid."
        )
    if not shuffles:
        return tuple(notes)
    what = "pixel shuffle spreads" if shuffles == 1 else "pixel shuffles spread"
    notes.append(
        f"{shuffles} {what} something else than the output of a plain convolution of stride 1, such as a "
        "residual: a grid that comes from there is not corrected. `fix` trains the layers around it."
    )
    return tuple(notes)


@runtime_checkable
class ShowsShuffles(Protocol):
    """A front end that can write convolutions in front of pixel shuffles as transposed convolutions."""

    def with_transposed(self, model: Any, inputs: Any | None) -> tuple[Any, tuple[str, ...]]:
        """The same function, with a transposed convolution for each such layer, under its name; and notes.

        Args:
            model: Changed itself.
            inputs: To find the layers by a run, where that is needed.
        """
        ...

    def shows_shuffles(self, model: Any) -> bool:
        """Whether it has such layers."""
        ...

    def same_function(self, shown: Any, model: Any, inputs: Any) -> ParityReport:
        """Compares a model with and without such layers."""
        ...

    def as_in(self, model: Any, exposed: Any) -> Any:
        """Another model of the same architecture, written like one that `with_transposed` gave."""
        ...

    def with_shuffled(self, model: Any) -> Any:
        """The way back, of weights that may have changed; the model itself is changed."""
        ...


def check_same(frontend: ShowsShuffles, shown: Any, model: Any, inputs: Any) -> None:
    """Raises if pixel shuffles and what stands for them are not the same function."""
    parity = frontend.same_function(shown, model, inputs)
    # Whether inputs are evidence at all is said of the conversion itself.
    if not all(comparison.ok for comparison in parity.comparisons):
        raise parity_error(parity, "(model)")


def shown(
    frontend: Any, working: Any, model: Any, inputs: Any | None, *, inplace: bool
) -> tuple[ShowsShuffles | None, Any, tuple[str, ...]]:
    """A model with its convolutions in front of pixel shuffles as transposed convolutions, if it has any.

    Args:
        frontend: Of its kind.
        working: The model to work on.
        model: The original, to compare with.
        inputs: To find the layers by a run.
        inplace: Whether `working` is the user's: it is not written otherwise then.

    Returns:
        The front end, if there are such layers; the model; and notes.

    Raises:
        ParityError: If the two do not compute the same.
    """
    if not isinstance(frontend, ShowsShuffles):
        return None, working, ()
    copy = frontend.prepare(working, None, inplace=False) if inplace else working  # type: ignore[attr-defined]
    copy, notes = frontend.with_transposed(copy, inputs)
    if not frontend.shows_shuffles(copy):
        return None, working, notes
    if inplace:
        return None, working, (*notes, _NOT_IN_PLACE)
    check_same(frontend, copy, model, inputs)
    return frontend, copy, notes
