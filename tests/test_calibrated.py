"""Fits to data: the regression, its moments, and the models that come out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from deconvfix.frontends.torch.moments import Moments
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases
from test_forms import interpolations, padding_modes, run_form
from torch import nn

import deconvfix
from deconvfix.core.steps import run
from deconvfix.errors import OptionError, Refusal
from deconvfix.fit.regression import (
    RIDGES,
    best_ridge,
    bytes_needed,
    equations,
    ridge_fit,
    squared_error,
)
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch.checkpoint import load, write
from deconvfix.frontends.torch.layers import read_weight, spec_of
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Plan

settings_drawn = st.builds(
    Settings,
    interpolation=interpolations,
    padding_mode=padding_modes,
    init=st.just("calibrated"),
    grow=st.integers(0, 1),
    reach=st.sampled_from([1, 3]),  # means of integers are exact in binary
)
fitted_forms = st.sampled_from(["resize", "equalized", "notch"])


def accepts(name, case, settings):
    return name == "resize" or not isinstance(
        form(name).settle(case.spec, settings, lambda: case.weight), Refusal
    )


def run_design(design, x, kernel, bias, shape, groups):
    """The linear model that a `Design` describes, as its text says it."""
    y = (
        np.zeros(shape)
        if bias is None
        else np.zeros(shape) + bias.reshape(-1, *(1,) * (x.ndim - 2))
    )
    extended = run(design.steps, x, np.zeros(()), None)
    # (copies*C_in, C_out/g, *taps) -> (g, C_in/g, C_out/g, copies*taps)
    flat = kernel.reshape(groups, design.copies, -1, kernel.shape[1], math.prod(kernel.shape[2:]))
    flat = np.concatenate(list(np.moveaxis(flat, 1, 0)), -1)
    for phase in design.phases:
        grid = (..., *(slice(f, None, s) for f, s in zip(phase.first, phase.step, strict=True)))
        counts = y[grid].shape[2:]
        copies = phase.copies or (0,) * len(phase.taps)
        for tap, starts, copy in zip(phase.taps, phase.starts, copies, strict=True):
            window = (..., *(slice(s, s + n) for s, n in zip(starts, counts, strict=True)))
            seen = extended[window]
            # (N, copies*C_in, *count) -> (N, g, C_in/g, *count)
            seen = seen.reshape(len(x), groups, design.copies, x.shape[1] // groups, *counts)[
                :, :, copy
            ]
            part = np.einsum("ngi...,gio->ngo...", seen, flat[..., tap])
            y[grid] += part.reshape(y[grid].shape)
    return y


@given(cases(), fitted_forms, settings_drawn)
def test_a_design_is_the_form_as_a_linear_model(case, name, settings):
    """Fits of integers below 1e3 round to far less than 1e-9 in float64."""
    if not accepts(name, case, settings):
        return
    chosen = form(name)
    kernel = chosen.fit(case.spec, settings, case.weight)
    if name != "equalized":
        want = run_form(name, case, settings)
    else:
        [step] = chosen.compile(case.spec, settings).steps
        want = run((step,), case.x, kernel, case.bias)
    design = chosen.design(case.spec, settings)
    got = run_design(design, case.x, kernel, case.bias, want.shape, case.spec.groups)
    assert want.shape == case.expected.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@given(cases(), fitted_forms, settings_drawn)
def test_a_design_knows_all_kernels_of_its_form(case, name, settings):
    """The fit lies in the span of the basis, whose columns are orthonormal."""
    if not accepts(name, case, settings):
        return
    basis = form(name).design(case.spec, settings).basis
    kernel = form(name).fit(case.spec, settings, case.weight)
    design = form(name).design(case.spec, settings)
    numbers = design.numbers(kernel, case.spec.groups)
    back = design.kernel(numbers, case.spec.groups).reshape(kernel.shape)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(back, kernel, rtol=0, atol=1e-9)
    if name == "equalized":
        phases = math.prod(case.spec.stride)
        assert basis.shape[1] == math.prod(kernel.shape[2:]) - phases + 1
    if name == "notch":
        assert basis.shape[1] == math.prod(kernel.shape[2:])


# --- moments and solves -------------------------------------------------------------------------


def moments_of(name, case, settings, y, pieces=1):
    sums = Moments(case.spec, name, settings)
    for x_part, y_part in zip(
        np.array_split(case.x, pieces), np.array_split(y, pieces), strict=True
    ):
        sums.add(torch.from_numpy(x_part), torch.from_numpy(y_part))
    return sums


def problem(name, case, settings, y):
    """The normal equations, and the weights-only fit w_0, of the first group."""
    sums = moments_of(name, case, settings, y)
    basis = [sums.design.basis[list(phase.taps)] for phase in sums.design.phases]
    kernel = form(name).fit(case.spec, settings, case.weight)
    w_0 = sums.design.numbers(kernel, case.spec.groups)
    fitted, heldout = sums.of_group(0)
    total = [one + other for one, other in zip(fitted, heldout, strict=True)]
    w_0 = w_0[: case.spec.in_channels // case.spec.groups]
    return equations(total, basis, w_0.shape), w_0


def first_group(case):
    return None if case.bias is None else case.bias[: case.spec.out_channels // case.spec.groups]


@given(cases(), fitted_forms, settings_drawn, st.sampled_from([1e-7, 1e-4, 1e-2]))
def test_a_calibrated_fit_is_no_worse_than_the_fit_to_the_weights(case, name, settings, ridge):
    """On the data it is fitted to; the penalty is zero at the start, so no ridge can spoil it."""
    if not accepts(name, case, settings):
        return
    system, w_0 = problem(name, case, settings, case.expected)
    bias = first_group(case)
    w, b = ridge_fit(system, w_0, bias, ridge)
    power = squared_error(system, np.zeros_like(w), None)
    # Errors are differences of moments: they round at 1e-16 of the power, a few hundred terms.
    rounding = 1e-12 * (power + squared_error(system, w_0, None))
    assert squared_error(system, w, b) <= (squared_error(system, w_0, bias) + rounding)


@given(cases(), fitted_forms, settings_drawn)
def test_what_the_form_can_do_is_left_as_it_is(case, name, settings):
    """Outputs that the start makes already: the fit stays, to the rounding of the solve.

    The condition number of the normal equations is at most 1/ridge, times their size.
    """
    if not accepts(name, case, settings):
        return
    y = case.expected if name == "equalized" else run_form(name, case, settings)
    if name == "equalized":
        [step] = form(name).compile(case.spec, settings).steps
        y = run((step,), case.x, form(name).fit(case.spec, settings, case.weight), case.bias)
    system, w_0 = problem(name, case, settings, y)
    w, _ = ridge_fit(system, w_0, first_group(case), 1e-3)
    np.testing.assert_allclose(w, w_0, rtol=0, atol=1e-8 * max(1.0, np.abs(w_0).max()))


@given(cases(), fitted_forms, settings_drawn)
def test_moments_are_sums(case, name, settings):
    """Batches one after the other are the whole batch; integers, so to the bit."""
    if not accepts(name, case, settings) or settings.interpolation == "linear":
        return
    case = replace(case, x=np.concatenate([case.x, case.x[:, :, ::-1] + 1]))
    y = case.expected
    whole = moments_of(name, case, settings, y)
    pieces = moments_of(name, case, settings, y, pieces=len(y))
    for group in range(case.spec.groups):
        for one, other in zip(whole.of_group(group), pieces.of_group(group), strict=True):
            assert all(map(np.array_equal, one, other))


def noisy_equations(rng, truth, count, noise):
    u = rng.normal(size=(count, len(truth)))
    y = u @ truth[:, 0] + noise * rng.normal(size=(count, 1))
    z = np.concatenate([u, np.ones((count, 1)), y], 1)
    return equations([z.T @ z], [np.ones((1, 1))], truth.shape)


def test_the_ridge_is_chosen_on_samples_that_were_not_fitted():
    """Few noisy samples want a strong ridge, many exact ones a weak one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 1, 1))
    start = np.zeros_like(truth)
    chosen = []
    for count, noise in ((32, 10.0), (300, 0.0)):
        heldout = noisy_equations(rng, truth, 200, noise)
        fitted = noisy_equations(rng, truth, count, noise)
        chosen.append(best_ridge(fitted, heldout, start, None)[0])
    assert chosen[0] > chosen[1]


@pytest.mark.parametrize("count", [32, 40, 60, 300])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 10.0])
def test_the_ridge_is_the_best_of_all_candidates(count, noise):
    """The search leaves some of them out."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 1, 1))
    start = np.zeros_like(truth)
    fitted = noisy_equations(rng, truth, count, noise)
    heldout = noisy_equations(rng, truth, 200, noise)
    errors = [squared_error(heldout, *ridge_fit(fitted, start, None, ridge)) for ridge in RIDGES]
    ridge, error = best_ridge(fitted, heldout, start, None)
    assert error == errors[RIDGES.index(ridge)] == min(errors)


# --- models -------------------------------------------------------------------------------------


class Net(nn.Module):
    """A residual connection, two branches, a layer that runs twice, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
        self.side = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.mix = nn.Conv2d(6, 4, 3, padding=1)
        self.twice = nn.ConvTranspose2d(4, 4, (4, 5), stride=2, padding=(1, 2), dilation=1)
        self.never = nn.ConvTranspose2d(4, 4, 4, stride=2)

    def forward(self, x):
        x = torch.relu(self.mix(self.up(x) + self.side(x))) + nn.functional.interpolate(
            x, scale_factor=2
        )
        x = self.twice(x, output_size=[2 * n for n in x.shape[2:]])
        return self.twice(torch.tanh(x)).mean(1)


def smooth_batches(shape, count=6, seed=0):
    """Inputs with the neighbourhood of real features: noise at half the resolution, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        coarse = torch.randn(*shape[:2], *(max(2, n // 2) for n in shape[2:]), generator=generator)
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
        batches.append(nn.functional.interpolate(coarse, shape[2:], mode=mode))
    return batches


def error_of(model, other, batches):
    with torch.no_grad():
        return float(sum((model(x) - other(x)).square().sum() for x in batches))


def ripples(model):
    return [
        ripple_db(spec_of(each), read_weight(each.weight))
        for each in model.modules()
        if isinstance(each, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    ]


@pytest.mark.parametrize("options", [{"to": "equalized"}, {"to": "resize"},
                                     {"to": "resize", "interpolation": "linear"},
                                     {"to": "equalized", "grow": 1}, {"to": "notch"},
                                     {"to": "notch", "reach": 1}], ids=str)  # fmt: skip
def test_a_calibrated_model_is_closer_than_one_fitted_to_its_weights(options, tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    batches, fresh = smooth_batches((4, 4, 6, 8)), smooth_batches((4, 4, 6, 8), seed=1)
    weights_only = deconvfix.convert(model, init="fit", **options)
    got = deconvfix.convert(model, init="calibrated", calibration=batches, **options)
    # On inputs that it was not fitted to. Not by much: random weights have a large ripple, which no
    # kernel of these forms can follow.
    assert error_of(got.model, model, fresh) < error_of(weights_only.model, model, fresh)
    assert any(note.startswith("never did not run") for note in got.report.notes)
    assert got.plan["never"].reason == weights_only.plan["never"].reason
    assert got.plan["up"].reason.startswith("calibrated, ")
    if options["to"] == "equalized":
        # float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of up to 36 of them.
        assert max(ripples(got.model)) < -120 < -40 < max(ripples(model))
    assert Plan.from_json(got.plan.to_json()) == got.plan
    write(tmp_path / "new.safetensors", got.model, got.plan)
    rebuilt = load(tmp_path / "new.safetensors", Net()).eval()
    assert torch.equal(rebuilt(fresh[0]), got.model(fresh[0]))


layers_of_every_kind = pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 6, 7, stride=3, padding=2, groups=2),
        nn.ConvTranspose1d(3, 2, 4, stride=2, padding=3, dilation=3, bias=False),
        nn.ConvTranspose2d(3, 2, (4, 3), stride=(2, 1), padding=1),
        nn.ConvTranspose3d(2, 2, (4, 2, 3), stride=(2, 2, 1), padding=(1, 0, 1)),
        torch.nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose1d(3, 2, 8, stride=4, padding=2)
        ),
    ],
    ids=["groups", "dilation", "anisotropic", "3-D", "weight norm"],
)


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@layers_of_every_kind
def test_layers_of_every_kind_are_calibrated(layer, to):
    """Unbatched inputs too: the first axis is a sample's own."""
    shape = (3, layer.in_channels, *(9, 8, 7)[: len(layer.kernel_size)])
    batches = smooth_batches(shape)
    got = deconvfix.convert(layer, to=to, init="calibrated", calibration=batches)
    worse = deconvfix.convert(layer, to=to, init="fit")
    assert error_of(got.model, layer, batches) < error_of(worse.model, layer, batches)
    assert got.report.parity.ok
    if to == "equalized":
        assert max(ripples(got.model)) < -120
    one_by_one = [x for batch in batches for x in batch]
    same = deconvfix.convert(layer, to=to, init="calibrated", calibration=one_by_one)
    for one, other in zip(got.model.parameters(), same.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_that_is_free_of_artifacts_is_kept_or_exact():
    layer = nn.ConvTranspose1d(1, 1, 4, stride=2, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.25, 0.75, 0.75, 0.25]))
    batches = smooth_batches((2, 1, 9))
    kept = deconvfix.convert(layer, to="equalized", init="calibrated", calibration=batches)
    exact = deconvfix.convert(layer, to="resize", init="calibrated", calibration=batches)
    assert kept.plan[""].decision == "kept"
    assert exact.plan[""].exact


def test_the_border_is_the_one_that_fits_best():
    """A zero border is right for a layer with zero padding on inputs with a high mean."""
    torch.manual_seed(1)
    layer = nn.ConvTranspose1d(2, 2, 4, stride=2, padding=1)
    batches = [x + 5 for x in smooth_batches((4, 2, 6))]
    errors = {}
    for mode in ("reflect", "replicate", "zeros", None):
        got = deconvfix.convert(
            layer, to="resize", init="calibrated", calibration=batches, padding_mode=mode
        )
        errors[mode] = error_of(got.model, layer, batches)
        assert got.plan[""].settings.padding_mode == (mode or "zeros")
    assert errors[None] == errors["zeros"] < errors["reflect"]


def test_drawn_inputs_have_the_shapes_of_the_example():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 4, 2, 1)
    )
    results = [
        deconvfix.convert(
            model,
            to="equalized",
            init="calibrated",
            calibration=name,
            example_inputs=(torch.zeros(4, 5),),
        )
        for name in ("normal", "uniform", "normal")
    ]
    weights = [each.model[2].weight for each in results]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "calibration: there are no calibration inputs; init 'calibrated' and 'tuned' fit"),
        ({"calibration": []}, "calibration: it is empty; init 'calibrated' and 'tuned' fit"),
        ({"calibration": "gamma"}, "calibration: the value is 'gamma'; one of 'normal', 'uniform'"),
        ({"calibration": "normal"}, "it is 'normal' and there are no example inputs; example"),
        ({"calibration": [torch.ones(1, 4, 5, 5)], "grow": -1}, "grow: the value is -1; a number"),
    ],
    ids=["none", "empty", "unknown", "no shapes", "grow"],
)
def test_what_is_wrong_is_said(options, text):
    with pytest.raises(OptionError, match=text.replace("(", r"\(")) as caught:
        deconvfix.convert(Net(), to="resize", init="calibrated", **options)
    assert caught.value.todo


def test_inputs_that_are_not_finite_are_refused():
    batches = [*smooth_batches((4, 4, 6, 8)), torch.full((1, 4, 6, 8), math.nan)]
    with pytest.raises(deconvfix.ModelError, match="up: its inputs or outputs are not finite"):
        deconvfix.convert(Net(), to="equalized", init="calibrated", calibration=batches)


def test_traced_models_are_calibrated_too():
    """Their layers are modules, whatever calls them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, 2))
    batches = smooth_batches((4, 2, 9))
    results = [
        deconvfix.convert(each, to="equalized", init="calibrated", calibration=batches).model
        for each in (model, torch.fx.symbolic_trace(model))
    ]
    assert torch.equal(results[0](batches[0]), results[1](batches[0]))


def test_a_dry_run_needs_no_data():
    """The plan of a calibrated conversion is pure, and rebuilds the architecture."""
    from deconvfix.frontends.torch.frontend import FRONTEND
    from deconvfix.plan import Options, make_plan

    model = Net()
    options = Options(to="equalized", init="calibrated", grow=1)
    plan = make_plan(FRONTEND.find(model, None).matches, options)
    rebuilt = FRONTEND.apply(model, Plan.from_json(plan.to_json()))
    assert rebuilt.up.kernel_size == (6, 6)
    assert rebuilt.up.padding == (2, 2)


class InPlace(nn.Module):
    """A layer that runs twice; what follows changes its output, and its input, in place."""

    def __init__(self, inplace):
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 3, 4, stride=2, padding=1)
        self.act = nn.LeakyReLU(-2.0, inplace=inplace)

    def forward(self, x):
        x = x * 2
        for _ in range(2):
            old, x = x, self.act(self.up(x))
            if self.act.inplace:
                old.zero_()
        return x


@pytest.mark.parametrize("most", [2**30, 0])
def test_what_follows_may_change_outputs_in_place(most, monkeypatch):
    """Features are seen as the layer saw them; whether its outputs are kept or computed again."""
    monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", most)
    batches = smooth_batches((4, 3, 9))
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        got = deconvfix.convert(
            InPlace(inplace), to="equalized", init="calibrated", calibration=batches
        )
        found.append(got.model.up.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("memory", [8.0, 0.5 / 1024], ids=["both are fitted", "the second one is"])
def test_inputs_that_are_kept_are_those_of_the_converted_model(memory, monkeypatch):
    """Of the first layer the original's, in which nothing before it is another; not of one after it."""
    batches = smooth_batches((4, 16, 5, 6))
    found = []
    for most in (2**30, 0):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Tanh(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
            nn.LeakyReLU(-2.0, inplace=True),
            nn.ConvTranspose2d(3, 2, 4, 2, 1),
        )
        monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", most)
        options = {"to": "equalized", "grow": 1, "init": "calibrated", "memory": memory}
        got = deconvfix.convert(model, calibration=batches, **options)
        assert ("GiB" in " ".join(got.report.notes)) == (memory < 1)
        found.append([got.model[1].weight, got.model[3].weight])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("to", "grow"), [("equalized", 1), ("resize", 0), ("notch", 0)])
def test_a_regression_that_takes_too_much_memory_is_left_out(to, grow):
    """The layer keeps its fit to the weights, to the bit, and a note says what it would take."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(3, 2, 4, 2, 1)
    )
    batches = smooth_batches((4, 16, 5, 6))
    options = {"to": to, "grow": grow, "calibration": batches, "init": "calibrated"}
    weights_only = deconvfix.convert(model, to=to, grow=grow, init="fit")
    whole = deconvfix.convert(model, **options)
    # 0.5 MiB: more than the second layer needs, less than the first.
    got = deconvfix.convert(model, memory=0.5 / 1024, **options)
    [note] = [each for each in got.report.notes if "GiB" in each]
    assert note.startswith("0: it keeps its fit to the weights, because its regression takes 0.0")
    for name, value in weights_only.model[0].state_dict().items():
        assert torch.equal(value, got.model[0].state_dict()[name])
    assert got.plan["0"].reason == weights_only.plan["0"].reason
    assert got.plan["2"].reason.startswith("calibrated, ")
    assert not any("GiB" in each for each in whole.report.notes)
    with pytest.raises(OptionError, match="memory: the value is 0"):
        deconvfix.convert(model, memory=0, **options)


@given(cases(), fitted_forms, settings_drawn)
def test_the_memory_that_is_told_is_that_of_what_is_kept(case, name, settings):
    if not accepts(name, case, settings):
        return
    sums = moments_of(name, case, settings, case.expected)
    system, _ = problem(name, case, settings, case.expected)
    moments = case.spec.groups * sum(h.nbytes for part in sums.of_group(0) for h in part)
    assert bytes_needed(sums.design, case.spec) == moments + 4 * system.normal.nbytes
