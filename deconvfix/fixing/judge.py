"""When a grid is seen, and what counts as worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from deconvfix.fixing.report import Measured
from deconvfix.grid.periods import Period
from deconvfix.grid.visible import VISIBLE, visible_grid

__all__ = ["is_seen", "leaves_grid", "objections"]

# A grid is seen only if it is so many times larger than what other periods show, which texture has too.
_ABOVE_TEXTURE = 1.5
# Or where the worst patches have so much.
_WORST_SEEN = 1.0
# What counts as worse: distance to the goal and to the truth in dB, the mean of a channel and the worst
# patches in steps. Fits in closed form see one layer at a time, and cost more of the truth than training.
_MATCH_DB, _TRUTH_DB, _TRUTH_UNTRAINED_DB, _COLOUR, _WORST = 0.5, 0.05, 0.2, 1.0, 0.05
# Closer to the goal than this is close enough, however close the original was.
_CLOSE_DB = 40.0
# A ripple on constants below this is less than a step of 255, whatever it was.
_FLAT_DB = -50.0
# A candidate must take away at least this share of the grid.
_TAKEN = 0.3
# Of the programme's rms, in thousandths: tones below this are not heard.
_AUDIBLE = 1.0


def objections(
    before: Measured, after: Measured, cost: float, max_cost: float, *, trained: bool = True
) -> Iterator[str]:
    """What a candidate makes worse, or does not make better.

    Args:
        before: The original.
        after: The candidate.
        cost: Its operations, relative to the original's.
        max_cost: The most that are allowed.
        trained: Whether models of this kind can be trained: where not, a bit of quality may be lost.
    """
    truth_db = _TRUTH_DB if trained else _TRUTH_UNTRAINED_DB
    if leaves_grid(before, after):
        yield (
            f"it leaves a grid of {after.seen:.2f} steps"
            if after.tones is None
            else f"it leaves {after.grid_in_words()}"
        )
    if after.tones is None and after.worst > before.worst + _WORST:
        yield f"the worst patches go from {before.worst:.2f} to {after.worst:.2f} steps"
    if after.tones is not None and after.worst > max(before.worst + _WORST, _AUDIBLE):
        yield "the tones in silence are louder"
    if after.match_db < min(before.match_db - _MATCH_DB, _CLOSE_DB):
        yield (
            f"it is further from the outputs without a grid than the original "
            f"({after.match_db:.1f} dB, the original {before.match_db:.1f} dB)"
        )
    # A sound has no level that is heard.
    if after.tones is None and after.colour_shift > _COLOUR:
        yield f"the mean of a channel moves by {after.colour_shift:.1f} steps"
    if (
        before.truth_db is not None
        and after.truth_db is not None
        and after.truth_db < before.truth_db - truth_db
    ):
        yield f"its quality falls from {before.truth_db:.2f} to {after.truth_db:.2f} dB"
    if (
        after.tones is None
        and before.flat_db is not None
        and after.flat_db is not None
        and after.flat_db > max(before.flat_db + 1, _FLAT_DB)
    ):
        yield f"its answer to a constant ripples more ({after.flat_db:.0f} dB)"
    if cost > max_cost * 1.001:
        yield f"it costs x{cost:.2f}"


def leaves_grid(before: Measured, after: Measured) -> bool:
    """Whether a candidate leaves too much of the grid to be worth anything."""
    if after.tones is not None and after.seen <= _AUDIBLE:
        return False
    return after.seen > (1 - _TAKEN) * before.seen


def is_seen(
    original: Sequence[NDArray[Any]], periods: Mapping[int, Period], measured: Measured
) -> bool:
    """Whether there is a grid, and not only texture, which other periods show as well."""
    if measured.tones is not None:
        return measured.seen > _AUDIBLE
    others = [
        found.mean
        for i, period in periods.items()
        for more in (1, 2)
        if (found := visible_grid(original[i], tuple(n + more for n in period))) is not None
    ]
    texture = max([0.0, *others])
    is_strong = measured.seen > _ABOVE_TEXTURE * texture or measured.worst > _WORST_SEEN
    return measured.seen > VISIBLE and is_strong
