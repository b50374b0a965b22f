"""A distillation that goes on from a file."""

import pytest
import torch

import deconvfix
from deconvfix import Tuning
from deconvfix.errors import OptionError
from tests.support.networks import smooth_batches
from tests.support.tuned import convert, decoder, state_of


@pytest.mark.parametrize("stop", [1, 3, 20])
@pytest.mark.parametrize("learning_rate", [None, 1e-3])
def test_an_interrupted_run_goes_on_to_the_same_end(stop, learning_rate, tmp_path):
    """In a trial of a learning rate or in the run itself: to the bit."""
    options = {"steps": 60, "learning_rate": learning_rate}
    want = state_of(convert(decoder(), Tuning(**options)).model)
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == stop + 1:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        convert(decoder(), Tuning(**options, progress=interrupt, resume=path))
    assert path.exists()
    rest = []
    again = convert(decoder(), Tuning(**options, progress=rest.append, resume=path))
    got = state_of(again.model)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert rest[0].fraction >= seen[-2].fraction, "it did not begin anew"


def test_a_run_goes_on_only_from_its_own_state(tmp_path):
    path = tmp_path / "run.safetensors"
    convert(decoder(), Tuning(steps=10, resume=path))
    with pytest.raises(OptionError, match="of another model, other inputs or other options"):
        convert(decoder(), Tuning(steps=10, seed=1, resume=path))
    path.write_bytes(b"nothing")
    with pytest.raises(OptionError, match="the distillation cannot resume from it"):
        convert(decoder(), Tuning(steps=10, resume=path))


def test_a_run_does_not_go_on_with_other_inputs_or_another_loss(tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"to": "equalized", "init": "tuned"}
    batches = smooth_batches((4, 3, 5, 6))
    tuning = Tuning(steps=10, resume=path)

    def absolute(new, old):
        return (new - old).abs().mean()

    deconvfix.convert(decoder(), calibration=batches, tuning=tuning, **options)
    # The same ones go on.
    deconvfix.convert(decoder(), calibration=batches, tuning=tuning, **options)
    for changed in (
        {"calibration": [batch * 1.5 for batch in batches], "tuning": tuning},
        {"calibration": batches, "tuning": Tuning(steps=10, resume=path, loss=absolute)},
    ):
        with pytest.raises(OptionError, match="other inputs or other options"):
            deconvfix.convert(decoder(), **changed, **options)
