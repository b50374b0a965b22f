"""Equalized layers that keep a part of their imbalance: strength from 0 (nothing moves) to 1 (no grid)."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases
from test_calibrated import (
    Net,
    accepts,
    error_of,
    first_group,
    layers_of_every_kind,
    moments_of,
    smooth_batches,
)
from test_tuned import decoder
from torch import nn

import deconvfix
from deconvfix import OptionError, Tuning
from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.steps import run
from deconvfix.errors import Refusal
from deconvfix.fit.regression import beside, equations, ridge_fit, squared_error
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch.checkpoint import load, write
from deconvfix.frontends.torch.layers import read_weight, spec_of
from deconvfix.plan import Options, Plan

EQUALIZED = form("equalized")
strengths = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9, 1.0])
settings_drawn = st.builds(Settings, strength=strengths, grow=st.integers(0, 1))


def unequal(kernel, stride, dilation):
    """What each phase sum departs from the mean of all, (C_in, C_out / groups, *stride)."""
    sums = phase_sums(kernel, phase_of_taps(kernel.shape[2:], stride, dilation), stride)
    return sums - sums.mean(tuple(range(2, sums.ndim)), keepdims=True)


# --- the fit to the weights ---------------------------------------------------------------------


@given(cases(), settings_drawn)
def test_imbalance_falls_by_what_is_left_of_the_strength(case, settings):
    """Sums of fewer than 1e3 taps below 1e1 round to far less than 1e-11 in float64."""
    if not accepts("equalized", case, settings):
        return
    spec, left = case.spec, 1 - settings.strength
    new = EQUALIZED.fit(spec, settings, case.weight)
    old = EQUALIZED.fit(spec, replace(settings, strength=0.0), case.weight)
    departs = unequal(new, spec.stride, spec.dilation)
    want = left * unequal(old, spec.stride, spec.dilation)
    np.testing.assert_allclose(departs, want, rtol=0, atol=1e-11)
    # Not the sums alone: the whole component outside of the kernels with equal sums.
    basis = EQUALIZED.design(spec, settings).basis
    flat, flat_old = (each.reshape(*each.shape[:2], -1) for each in (new, old))
    outside = flat - flat @ basis @ basis.T
    want = left * (flat_old - flat_old @ basis @ basis.T)
    np.testing.assert_allclose(outside, want, rtol=0, atol=1e-11)
    np.testing.assert_allclose(flat @ basis, flat_old @ basis, rtol=0, atol=1e-11)


@given(cases(), st.integers(0, 1))
def test_strength_0_is_the_weight_bit_for_bit(case, grow):
    """Zeros with a sign too; a kernel that grows has zeros around it."""
    weight = np.where(case.weight == 0, -0.0, case.weight)
    settings = Settings(strength=0.0, grow=grow)
    new = EQUALIZED.fit(case.spec, settings, weight)
    inside = tuple(
        slice(grow, n - grow) if s > 1 and grow else slice(None)
        for n, s in zip(new.shape[2:], case.spec.stride, strict=True)
    )
    assert new[(..., *inside)].tobytes() == weight.tobytes()
    assert np.abs(new).sum() == np.abs(weight).sum()
    settled = EQUALIZED.settle(case.spec, settings, None)
    assert settled.exact, "also where a phase has no tap, or there is no weight"


@given(cases(), st.integers(0, 1))
def test_strength_1_is_the_whole_correction_bit_for_bit(case, grow):
    settings = Settings(grow=grow)
    if not accepts("equalized", case, settings):
        return
    extended = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)
    phases = phase_of_taps(extended.shape[2:], case.spec.stride, case.spec.dilation)
    sums = phase_sums(extended, phases, case.spec.stride)
    counts = phase_sums(np.ones((1, 1, *extended.shape[2:])), phases, case.spec.stride)
    axes = tuple(range(2, sums.ndim))
    common = (sums / counts).sum(axes, keepdims=True) / (1 / counts).sum(axes, keepdims=True)
    change = (common - sums) / counts
    for axis, phase in enumerate(phases, start=2):
        change = np.take(change, phase, axis)
    want = extended if math.prod(case.spec.stride) == 1 else extended + change
    assert np.array_equal(EQUALIZED.fit(case.spec, settings, case.weight), want)
    design = EQUALIZED.design(case.spec, settings)
    assert design.offset(want) is None


@given(cases(), settings_drawn)
def test_relative_size_of_the_change_is_told(case, settings):
    settled = EQUALIZED.settle(case.spec, settings, lambda: case.weight)
    if isinstance(settled, Refusal) or settled.exact:
        return
    old = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)
    new = EQUALIZED.fit(case.spec, settings, case.weight)
    size = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert settled.relative_residual == pytest.approx(size, rel=1e-9)
    assert ("strength" in settled.note) == (settings.strength != 1)


# --- the fit to data ----------------------------------------------------------------------------


@given(cases(), st.integers(0, 1))
def test_moments_beside_a_fixed_kernel_are_those_of_the_rest(case, grow):
    """Integers, so to the bit."""
    settings = Settings(init="calibrated", grow=grow)
    if not accepts("equalized", case, settings):
        return
    [step] = EQUALIZED.compile(case.spec, settings).steps
    rng = np.random.default_rng(0)
    fixed = rng.integers(-3, 4, step.spec.weight_shape).astype(np.float64)
    rest = case.expected - run((step,), case.x, fixed, None)
    sums = moments_of("equalized", case, settings, case.expected)
    want = moments_of("equalized", case, settings, rest)
    flat = fixed.reshape(case.spec.groups, -1, *fixed.shape[1:2], math.prod(fixed.shape[2:]))
    for group in range(case.spec.groups):
        kernels = [flat[group][..., list(phase.taps)] for phase in sums.design.phases]
        for moments, wanted in zip(sums.of_group(group), want.of_group(group), strict=True):
            assert all(map(np.array_equal, beside(moments, kernels), wanted))


def fitted(case, settings, y, ridge):
    """Whole kernel and bias of the first group, and the moments: as `torch_calibrate` does it."""
    sums = moments_of("equalized", case, settings, y)
    total = [a + b for a, b in zip(*sums.of_group(0), strict=True)]
    design = sums.design
    basis = [design.basis[list(phase.taps)] for phase in design.phases]
    start = EQUALIZED.fit(case.spec, settings, case.weight)
    offset = design.offset(start)
    many = case.spec.in_channels // case.spec.groups
    start = start.reshape(*start.shape[:2], -1)[:many]
    offset = np.zeros_like(start) if offset is None else offset[:many]
    left = beside(total, [offset[..., list(phase.taps)] for phase in design.phases])
    numbers = start @ design.basis
    system = equations(left, basis, numbers.shape)
    w, b = ridge_fit(system, numbers, first_group(case), ridge)
    return w @ design.basis.T + offset, b, total, design


def whole_error(total, design, kernel, bias):
    """Of a kernel that need not be in any form: the basis is that of all kernels."""
    everything = np.eye(kernel.shape[-1])
    basis = [everything[list(phase.taps)] for phase in design.phases]
    return squared_error(equations(total, basis, kernel.shape), kernel, bias)


def penalty_of(total, design, many, ridge):
    """What the ridge is relative to: the mean of the diagonal of the normal equations."""
    trace = 0.0
    for phase, h in zip(design.phases, total, strict=True):
        z = design.basis[list(phase.taps)]
        for begin in range(0, many * len(z), len(z)):
            own = slice(begin, begin + len(z))
            trace += np.trace(z.T @ h[own, own] @ z)
    return ridge * trace / (many * design.basis.shape[1]) or 1.0


@given(cases(), st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 1), st.booleans())
def test_calibration_is_no_worse_than_a_mixture_of_the_ends(case, strength, grow, own_output):
    """Of the original and the fit at strength 1, on the same data: the mixture is one of its kernels.

    Up to the ridge, which counts |w - w_0|^2 in both; and where the output to follow is the layer's own,
    the fit *is* that mixture, for all of it is linear.
    """
    settings = Settings(init="calibrated", grow=grow, strength=strength)
    if not accepts("equalized", case, settings):
        return
    ridge, y = 1e-3, case.expected
    if not own_output:
        y = y + np.random.default_rng(0).integers(-3, 4, y.shape)
    kernel, bias, total, design = fitted(case, settings, y, ridge)
    end, end_bias, _, _ = fitted(case, replace(settings, strength=1.0), y, ridge)
    many = case.spec.in_channels // case.spec.groups
    old = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)[:many]
    old = old.reshape(end.shape)
    mixture = (1 - strength) * old + strength * end
    old_bias = first_group(case)
    mixed_bias = None if bias is None else (1 - strength) * old_bias + strength * end_bias
    scale = max(1.0, np.abs(old).max())
    if own_output:
        np.testing.assert_allclose(kernel, mixture, rtol=0, atol=1e-8 * scale)
    power = whole_error(total, design, np.zeros_like(old), None)
    rounding = 1e-11 * (power + whole_error(total, design, mixture, mixed_bias))
    basis = design.basis
    penalty = penalty_of(total, design, many, ridge)

    def objective(k, b):
        return whole_error(total, design, k, b) + penalty * np.sum(((k - old) @ basis) ** 2)

    assert objective(kernel, bias) <= objective(mixture, mixed_bias) + rounding


# --- models -------------------------------------------------------------------------------------


def check_imbalance(layer, old, left):
    """`layer` has what is left of the imbalance of `old`; its weights round in float32.

    Each of the n taps of a phase by 2^-24 of its size, and the parts that it was put together from by
    as much: 4 n 2^-24 of the largest.
    """
    spec, old_spec = spec_of(layer), spec_of(old)
    kernel = read_weight(layer.weight)
    got = unequal(kernel, spec.stride, spec.dilation)
    was = unequal(read_weight(old.weight), old_spec.stride, old_spec.dilation)
    if kernel.shape != tuple(old.weight.shape):
        more = [
            (new - k) // 2 * d
            for new, k, d in zip(
                spec.kernel_size, old_spec.kernel_size, old_spec.dilation, strict=True
            )
        ]  # the phases count from a tap that is so much further
        axes = tuple(range(2, was.ndim))
        was = np.roll(was, more, axes)
    bound = 4 * math.prod(kernel.shape[2:]) * 2.0**-24 * float(np.abs(kernel).max())
    np.testing.assert_allclose(got, left * was, rtol=0, atol=bound)
    return float(np.abs(was).max()) / bound


@pytest.mark.parametrize("grow", [0, 1])
@pytest.mark.parametrize("init", ["fit", "calibrated"])
@layers_of_every_kind
def test_layers_of_every_kind_keep_a_part_of_their_ripple(layer, init, grow):
    if grow and torch.nn.utils.parametrize.is_parametrized(layer):
        return  # weights of another shape are refused there
    shape = (3, layer.in_channels, *(9, 8, 7)[: len(layer.kernel_size)])
    batches = smooth_batches(shape)
    errors = []
    for strength in (0.25, 0.75, 1.0):
        got = deconvfix.convert(
            layer, to="equalized", init=init, calibration=batches, grow=grow, strength=strength
        )
        # There is much more to see than the bound allows, so that a wrong factor would be seen.
        assert check_imbalance(got.model, layer, 1 - strength) > 1e3
        assert got.report.parity.ok
        errors.append(error_of(got.model, layer, batches))
    assert errors == sorted(errors)
    assert errors[0] < errors[2]


def test_a_wrong_factor_is_noticed():
    layer = nn.ConvTranspose2d(3, 2, 4, stride=2)
    got = deconvfix.convert(layer, to="equalized", strength=0.5)
    with pytest.raises(AssertionError):
        check_imbalance(got.model, layer, 0.499)


def test_calibrated_models_move_less_at_less_strength(tmp_path):
    model = Net().eval()
    batches, fresh = smooth_batches((4, 4, 6, 8)), smooth_batches((4, 4, 6, 8), seed=1)
    errors = []
    for strength in (0.3, 0.6, 1.0):
        got = deconvfix.convert(
            model, to="equalized", init="calibrated", calibration=batches, strength=strength
        )
        errors.append(error_of(got.model, model, fresh))
        for name in ("up", "side", "twice", "never"):
            check_imbalance(got.model.get_submodule(name), model.get_submodule(name), 1 - strength)
        told = got.plan["up"].reason
        assert told.endswith(f", strength {strength:g}") == (strength != 1)
    assert errors == sorted(errors)
    assert got.plan["up"].settings.strength == 1.0
    half = deconvfix.convert(model, to="equalized", strength=0.5)
    assert Plan.from_json(half.plan.to_json()) == half.plan
    write(tmp_path / "new.safetensors", half.model, half.plan)
    rebuilt = load(tmp_path / "new.safetensors", Net()).eval()
    assert torch.equal(rebuilt(fresh[0]), half.model(fresh[0]))


def test_the_default_strength_is_1():
    model, batches = Net(), smooth_batches((4, 4, 6, 8))
    for init in ("fit", "calibrated"):
        results = [
            deconvfix.convert(
                model, to="equalized", init=init, calibration=batches, **options
            ).model.state_dict()
            for options in ({}, {"strength": 1})
        ]
        assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("train_all", [False, True])
def test_tuned_kernels_stay_beside_what_is_left_of_the_imbalance(train_all):
    model = decoder()
    batches, fresh = smooth_batches((4, 3, 5, 6)), smooth_batches((4, 3, 5, 6), seed=1)
    options = {"to": "equalized", "calibration": batches, "strength": 0.5}
    calibrated = deconvfix.convert(model, init="calibrated", **options)
    tuning = Tuning(steps=60, train_all=train_all)
    tuned = deconvfix.convert(model, init="tuned", tuning=tuning, **options)
    assert error_of(tuned.model, model, fresh) < error_of(calibrated.model, model, fresh)
    for name in ("0", "4"):
        new, old = tuned.model.get_submodule(name), model.get_submodule(name)
        assert not torch.equal(new.weight, calibrated.model.get_submodule(name).weight)
        assert check_imbalance(new, old, 0.5) > 1e3
    assert list(tuned.model.state_dict()) == list(calibrated.model.state_dict())


# --- strength 0 ---------------------------------------------------------------------------------


class Difficult(nn.Module):
    """Layers that the equalized form refuses: an empty phase, a frozen weight, a computed one."""

    def __init__(self):
        super().__init__()
        self.gaps = nn.ConvTranspose2d(2, 2, 1, stride=2)
        self.normed = torch.nn.utils.parametrizations.spectral_norm(
            nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
        )
        self.kernel = nn.Parameter(torch.ones(2, 2, 4, 4))

    def forward(self, x):
        x = self.normed(self.gaps(x))
        return nn.functional.conv_transpose2d(x, self.kernel * 2, stride=2)


@pytest.mark.parametrize("init", [None, "exact", "fit", "calibrated", "tuned"])
def test_strength_0_changes_nothing_and_refuses_nothing(init):
    model = Difficult().eval()
    x = torch.randn(1, 2, 3, 4)
    refused = deconvfix.convert(model, to="equalized", example_inputs=(x,))
    assert len(refused.plan.refused) >= 2
    got = deconvfix.convert(
        model, to="equalized", init=init, example_inputs=(x,), strength=0, grow=1, strict=True
    )
    assert {each.decision for each in got.plan.decisions} == {"kept"}
    assert all(each.exact and "strength 0" in each.reason for each in got.plan.decisions)
    assert got.report.fidelity is None
    state = got.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(got.model(x), model(x))
    slight = deconvfix.convert(model, to="equalized", example_inputs=(x,), strength=1e-3)
    assert [each.name for each in slight.plan.refused] == [
        each.name for each in refused.plan.refused
    ]


def test_random_weights_are_no_part_of_the_layer_whatever_the_strength():
    settings = Settings(init="random", strength=0.0)
    spec = spec_of(nn.ConvTranspose2d(2, 2, 4, stride=2))
    assert isinstance(EQUALIZED.settle(spec, settings, None), Refusal)


# --- options and recipes ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "1", None, True])
def test_strength_is_a_number_from_0_to_1(value):
    with pytest.raises(OptionError, match=r"strength: the value is .*; a number from 0 .* needed"):
        Options(to="equalized", strength=value)


@pytest.mark.parametrize("to", ["subpixel", "resize"])
@pytest.mark.parametrize("strength", [0, 0.5])
def test_other_forms_have_no_strength(to, strength):
    text = (
        rf"strength: the value is {strength} and the form is '{to}'; .* 'equalized' and 'notch' can"
    )
    with pytest.raises(OptionError, match=text):
        deconvfix.convert(nn.ConvTranspose1d(2, 2, 4, 2), to=to, strength=strength)
    assert deconvfix.convert(nn.ConvTranspose1d(2, 2, 4, 2), to=to, strength=1).plan.replaced


def test_recipes_from_before_are_read():
    plan = deconvfix.convert(Net(), to="equalized").plan
    data = json.loads(plan.to_json())
    for each in data["decisions"]:
        del each["settings"]["strength"]
    assert Plan.from_json(json.dumps(data)) == plan


def test_other_kinds_of_models_have_a_strength():
    """An ONNX model and an exported program get the weights that the module gets."""
    import onnx

    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2), nn.ConvTranspose1d(3, 2, 3, 2)).eval()
    x = (torch.randn(1, 2, 9),)
    wanted = deconvfix.convert(model, to="equalized", strength=0.5).model
    program = torch.export.export(model, x)
    got = deconvfix.convert(program, to="equalized", strength=0.5).model
    for name, value in wanted.state_dict().items():
        assert torch.equal(got.state_dict[name], value)
    nodes = [
        onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2], kernel_shape=[4])
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 2, 9])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 20])],
        [onnx.numpy_helper.from_array(model[0].weight.detach().numpy(), "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx_model = deconvfix.convert(proto, to="equalized", strength=0.5).model
    [weight] = onnx_model.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(weight), wanted[0].weight.detach().numpy())


# --- the notch form -----------------------------------------------------------------------------


def test_notch_at_half_strength_has_half_the_ripple():
    """20 log10(1/2) = -6.02 dB for the fit to the weights; one unit of float32 is far below 1e-4 dB."""
    model, x = decoder(), smooth_batches((2, 3, 5, 6))[0]
    half = deconvfix.convert(model, to="notch", strength=0.5, example_inputs=(x,))
    even = half.report.layers[0]  # k4 s2: the mean level of the phases stays, too
    change = even.ripple_db_after - even.ripple_db_before
    assert change == pytest.approx(20 * math.log10(0.5), abs=1e-4)
    none = deconvfix.convert(model, to="notch", strength=0.0, example_inputs=(x,))
    assert all(each.exact for each in none.report.layers)
    assert error_of(none.model, model, [x]) < error_of(half.model, model, [x]) * 1e-6


def test_the_curve_of_notch_ends_without_a_grid():
    curve = deconvfix.strength_curve(
        decoder(), to="notch", calibration=smooth_batches((4, 3, 8, 9)), strengths=(0, 0.5, 1)
    )
    first, middle, last = curve.points
    # The sub-pixel form rounds otherwise than the layer: 2**-24 of the range is -144 dB.
    assert first.psnr_db > 130
    assert first.psnr_db > middle.psnr_db > last.psnr_db
    # float32 rounds kernels of up to 36 taps at about -120 dB.
    assert last.layer_ripple_db < -120 < first.layer_ripple_db
    assert last.network_ripple_db < -100
    with pytest.raises(OptionError, match="to: the value is 'resize'"):
        deconvfix.strength_curve(decoder(), to="resize", calibration="normal")
