"""The algorithm of calibrated fits with the smallest kind of model: a chain of layers in NumPy."""

import numpy as np
import pytest

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.errors import ModelError
from deconvfix.fit.moments import NUMPY, Moments
from deconvfix.fit.regression import solve
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.calibrate import UnseenError, calibrate
from deconvfix.plan import Plan, Replaced

SPECS = {
    "up1": ConvTransposeSpec.create(2, 3, 4, ndim=1, stride=2, padding=1),
    "up2": ConvTransposeSpec.create(3, 2, 4, ndim=1, stride=2, padding=1),
}
EQUALIZED = form("equalized")
SETTINGS = Settings(init="calibrated")
RNG = np.random.default_rng(0)
WEIGHTS = {
    name: RNG.standard_normal((spec.in_channels, spec.out_channels, 4))
    for name, spec in SPECS.items()
}
BIASES = {name: RNG.standard_normal(spec.out_channels) for name, spec in SPECS.items()}
BATCHES = [RNG.standard_normal((8, 2, 6)) for _ in range(4)]


def layer(name, kernel, bias, x):
    """A layer with any kernel of its own size, which the form equalized does not change."""
    (step,) = EQUALIZED.compile(SPECS[name], SETTINGS).steps
    return run((step,), x, kernel, bias)


class Chain:
    """up1, a rectifier, up2."""

    arrays = NUMPY
    any_size = False

    def __init__(self, counts=None, unseen=()):
        self.counts = dict.fromkeys(SPECS, 1) if counts is None else counts
        self.unseen = unseen
        self.kernels = {
            name: (EQUALIZED.fit(SPECS[name], SETTINGS, WEIGHTS[name]), BIASES[name])
            for name in SPECS
        }
        self.sweeps = []

    def order(self, names):
        return {name: count for name, count in self.counts.items() if name in names}

    def trained(self, decision):
        if decision.name in self.unseen:
            raise UnseenError("the test says so", "Nothing")
        return WEIGHTS[decision.name], BIASES[decision.name]

    def seen(self, decision):
        self.sweeps.append(decision.name)
        for batch in BATCHES:
            target = layer("up1", WEIGHTS["up1"], BIASES["up1"], batch)
            if decision.name == "up1":
                yield batch, target
            else:
                hidden = layer("up2", WEIGHTS["up2"], BIASES["up2"], np.maximum(target, 0))
                yield self.input_of_up2(batch), hidden

    def input_of_up2(self, batch):
        return np.maximum(layer("up1", *self.kernels["up1"], batch), 0)

    def directions(self, decision):
        return None

    def put(self, decision, solved):
        self.kernels[decision.name] = solved.kernel, solved.bias
        return decision


class Forgetful(Chain):
    """Shows a layer what it got in the original, not in the model so far."""

    def input_of_up2(self, batch):
        return np.maximum(layer("up1", WEIGHTS["up1"], BIASES["up1"], batch), 0)


def plan_of():
    decisions = tuple(
        Replaced(
            name=name,
            op="ConvTranspose1d",
            decision="replaced",
            form="equalized",
            reason="fitted to the weights",
            spec=spec,
            settings=SETTINGS,
            exact=False,
        )
        for name, spec in SPECS.items()
    )
    return Plan("equalized", decisions)


def calibrated(model, memory=8.0):
    return calibrate(model, plan_of(), choose_padding=False, memory=memory)


def solved_by_hand(name, pairs):
    spec = SPECS[name]
    sums = Moments(spec, EQUALIZED.design(spec, SETTINGS))
    for x, y in pairs:
        sums.add(x, y)
    return solve(sums, EQUALIZED.fit(spec, SETTINGS, WEIGHTS[name]), BIASES[name])


def differs(model):
    """Whether the second layer's fit is another than that to its inputs after the first layer's fit."""
    calibrated(model)
    first = solved_by_hand(
        "up1", [(x, layer("up1", WEIGHTS["up1"], BIASES["up1"], x)) for x in BATCHES]
    )
    pairs = []
    for batch in BATCHES:
        hidden = layer("up1", WEIGHTS["up1"], BIASES["up1"], batch)
        target = layer("up2", WEIGHTS["up2"], BIASES["up2"], np.maximum(hidden, 0))
        pairs.append((np.maximum(layer("up1", first.kernel, first.bias, batch), 0), target))
    second = solved_by_hand("up2", pairs)
    return not np.array_equal(model.kernels["up2"][0], second.kernel)


def test_a_layer_is_fitted_to_its_inputs_in_the_model_so_far():
    """To the bit: the algorithm adds nothing to moments and regression."""
    assert not differs(Chain())


def test_inputs_of_the_original_are_noticed():
    assert differs(Forgetful())


def test_the_plan_says_what_was_measured():
    plan, notes = calibrated(Chain())
    assert notes == []
    assert all(decision.reason.startswith("calibrated") for decision in plan.decisions)
    assert [decision.name for decision in plan.decisions] == [*SPECS]


@pytest.mark.parametrize(("count", "sweeps"), [(1, ["up1", "up2"]), (2, ["up1", "up1", "up2"])])
def test_a_layer_that_runs_several_times_is_fitted_twice(count, sweeps):
    """It gets its own outputs: only the second sweep sees the fitted ones."""
    model = Chain({"up1": count, "up2": 1})
    calibrated(model)
    assert model.sweeps == sweeps


def test_a_layer_that_cannot_be_seen_keeps_its_fit_to_the_weights():
    model = Chain(unseen=("up1",))
    plan, [note] = calibrated(model)
    assert note.startswith("up1: it keeps its fit to the weights, because the test says so")
    assert plan.decisions[0] == plan_of().decisions[0]
    assert plan.decisions[1].reason.startswith("calibrated")
    assert model.sweeps == ["up2"]


def test_a_layer_that_does_not_run_is_named():
    plan, [note] = calibrated(Chain({"up2": 1}))
    assert note.startswith("up1 did not run on the calibration inputs")
    assert plan.decisions[0] == plan_of().decisions[0]


def test_layers_too_large_for_the_memory_are_left_before_anything_runs():
    model = Chain()
    plan, notes = calibrated(model, memory=1e-9)
    assert len(notes) == 2
    assert model.sweeps == []
    assert plan == plan_of()


def test_outputs_that_the_geometry_does_not_explain_are_a_note():
    class Cropped(Chain):
        def seen(self, decision):
            return ((x, y[..., 1:]) for x, y in super().seen(decision))

    plan, notes = calibrated(Cropped())
    assert plan == plan_of()
    assert all("its geometry gives" in note for note in notes)


def test_values_that_are_not_finite_are_an_error():
    class Infinite(Chain):
        def seen(self, decision):
            return ((x, replace_one(y)) for x, y in super().seen(decision))

    def replace_one(y):
        y = y.copy()
        y[0, 0, 0] = np.nan
        return y

    with pytest.raises(ModelError, match="not finite on some calibration inputs"):
        calibrated(Infinite())
