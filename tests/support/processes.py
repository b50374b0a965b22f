"""A conversion for one of several processes."""

from pathlib import Path

import deconvfix
from deconvfix import Tuning
from tests.support.networks import smooth_batches
from tests.support.tuned import decoder

ROOT = Path(__file__).parents[2]


def convert(init, number=None):
    """The state after a conversion, with all batches or with every second one."""
    batches = smooth_batches((4, 3, 5, 6))
    if number is not None:
        batches = batches[number::2]
    got = deconvfix.convert(
        decoder(),
        to="equalized",
        init=init,
        calibration=batches,
        tuning=Tuning(steps=6),
    )
    return got.model.state_dict()
