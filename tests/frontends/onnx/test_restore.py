"""Layers fitted to outputs without a grid: what is locked to the phase goes, the rest stays."""

import numpy as np
import onnx
import pytest

from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.proto import from_proto
from tests.support.onnx_fits import as_onnx, integer_net
from tests.support.onnx_models import run


def smooth(shape, count=6, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        x = rng.standard_normal(shape)
        for _ in range(3):
            for axis in range(2, len(shape)):
                x = x + np.roll(x, 1, axis)
        found.append((x / 8).astype(np.float32))
    return found


def locked(values, period):
    """What the phases of whole outputs differ by, as a share of their size."""
    means = [
        values[(..., *(slice(f, None, p) for f, p in zip(phase, period, strict=True)))].mean()
        for phase in np.ndindex(*period)
    ]
    return float(np.std(means)) / float(np.std(values))


@pytest.fixture(scope="module")
def fitted():
    proto = as_onnx(integer_net())
    before = from_proto(proto)
    batches = smooth((4, 4, 16, 12))
    fits = FRONTEND.refitter(before, batches, 4, 0)
    return proto, before, fits, {weight: fits.refit(fits.names, weight) for weight in (0.0, 100.0)}


def outputs_of(model, x):
    probe = FRONTEND.runner(model)(x)
    return probe.outputs[0]


def test_without_a_weight_the_layers_compute_what_they_did(fitted):
    _, before, fits, found = fitted
    assert fits.names == ("up1", "up2")
    model, plan, notes = found[0.0]
    [x] = smooth((2, 4, 16, 12), 1, seed=9)
    np.testing.assert_allclose(outputs_of(model, x), outputs_of(before, x), rtol=0.02, atol=0.02)
    assert [decision.name for decision in plan.replaced] == ["up1", "up2"]
    assert notes == []


def test_with_a_weight_what_is_locked_to_the_phase_goes(fitted):
    proto, before, _, found = fitted
    [x] = smooth((2, 4, 16, 12), 1, seed=9)
    old, new = (outputs_of(model, x) for model in (before, found[100.0][0]))
    assert locked(new, (4, 6)) < 0.5 * locked(old, (4, 6))
    # The file that was given stays as it was.
    assert np.array_equal(run(proto, {"x": x})[0], old)


def test_some_of_the_layers(fitted):
    _, before, fits, _ = fitted
    model, plan, _ = fits.refit(("up2",), 10.0)
    assert [decision.name for decision in plan.replaced] == ["up2"]
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    old = {name: value.const_value.numpy() for name, value in before.graph.initializers.items()}
    changed = {name for name in old if not np.array_equal(old[name], stored.get(name, old[name]))}
    assert "up1.weight" not in changed
    assert len(stored) == len(old)


def test_layers_that_cannot_be_set_stay_with_a_note():
    """A bias that the caller may give."""
    proto = as_onnx(integer_net())
    bias = next(each for each in proto.graph.initializer if each.name == "up1.bias")
    shape = onnx.helper.make_tensor_value_info("up1.bias", 1, list(bias.dims))
    proto.graph.input.append(shape)
    fits = FRONTEND.refitter(from_proto(proto), smooth((4, 4, 16, 12)), 4, 0)
    _, plan, notes = fits.refit(fits.names, 10.0)
    assert [decision.name for decision in plan.replaced] == ["up2"]
    assert "up1 stays as it is, because its bias is computed" in notes[0]


def test_a_model_that_does_not_run_says_so():
    probe = FRONTEND.runner(from_proto(as_onnx(integer_net())))(np.zeros((1, 3, 8, 8), np.float32))
    assert probe.run is None
    assert probe.notes
