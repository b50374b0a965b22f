"""The words for what became of the visible grid, and when it counts as worse."""

import pytest

from deconvfix.diagnose.fidelity import Fidelity, OutputChange
from deconvfix.grid.visible import VisibleGrid


def change(before, after):
    return OutputChange(
        index=0,
        period=(2, 2),
        flat_before=None,
        flat_after=None,
        tones=(),
        visible_before=VisibleGrid(before, 2 * before, 20),
        visible_after=VisibleGrid(after, 2 * after, 20),
    )


@pytest.mark.parametrize(
    ("before", "after", "words", "worse"),
    [
        (1.0, 0.1, "fell from 1.00 to 0.10 steps", False),
        (1.0, 1.02, "stayed at 1.02 steps", False),
        (0.1, 0.2, "rose from 0.10 to 0.20 steps", False),
        (0.6, 0.9, "rose from 0.60 to 0.90 steps", True),
        (-0.5, 0.4, "rose from 0.00 to 0.40 steps", True),
    ],
)
def test_what_became_of_the_visible_grid(before, after, words, worse):
    output = change(before, after)
    assert f"the visible grid {words}" in output.visible_in_words()
    fidelity = Fidelity(40.0, -20.0, -120.0, outputs=(output,))
    assert fidelity.looks_worse is worse
    assert fidelity.sentence().startswith("In the smooth parts of the outputs, the visible grid")
    assert "On a constant input" in fidelity.sentence()


def test_without_a_measurement_constants_speak():
    assert Fidelity(40.0, -20.0, -120.0).sentence().startswith("On a constant input")
    assert not Fidelity(40.0, -20.0, -120.0).looks_worse
