"""The forms against the definition, for every geometry."""

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, ConvTranspose, Crop, PixelShuffle, run
from deconvfix.errors import Refusal
from deconvfix.fit.least_squares import apply_operators
from deconvfix.forms import FORMS, form
from deconvfix.forms.base import Settings
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Match, Options, make_plan

interpolations = st.sampled_from(["nearest", "linear"])
padding_modes = st.sampled_from(["reflect", "replicate", "zeros"])


def run_form(name, case, settings=None, weight=None):
    """A layer in a form, run by the executable meaning of its steps."""
    settings = settings or Settings()
    chosen = form(name)
    compiled = chosen.compile(case.spec, settings)
    kernel = chosen.fit(case.spec, settings, case.weight if weight is None else weight)
    new_weight = rearrange(compiled.weight, kernel, case.spec.groups)
    bias = None if case.bias is None else rearrange(compiled.bias, case.bias)
    return run(compiled.steps, case.x, new_weight, bias)


@given(cases())
def test_subpixel_is_the_definition(case):
    assert np.array_equal(run_form("subpixel", case), case.expected)


@given(cases())
def test_the_transposed_step_is_the_definition(case):
    got = run((ConvTranspose(case.spec),), case.x, case.weight, case.bias)
    assert np.array_equal(got, case.expected)


@given(cases())
def test_output_size_is_that_of_the_definition(case):
    assert case.spec.output_size(case.x.shape[2:]) == case.expected.shape[2:]


@given(cases(), interpolations, padding_modes)
def test_resize_has_the_output_size_of_the_layer(case, interpolation, padding_mode):
    settings = Settings(interpolation, padding_mode, "fit")
    assert run_form("resize", case, settings).shape == case.expected.shape


@given(cases(), interpolations)
def test_resize_with_zero_border_is_the_transposed_convolution_it_claims(case, interpolation):
    """Upsampling and convolving with w equals one transposed convolution with the kernel h * w.

    Exact in real numbers; float64 rounds fits of integers below 1e3 to far less than 1e-9.
    """
    settings = Settings(interpolation, "zeros", "fit")
    spec, kernel = form("resize").equivalent(case.spec, settings, case.weight)
    grown = [
        new - old if s > 1 else 0
        for new, old, s in zip(
            kernel.shape[2:], case.spec.effective_kernel_size, spec.stride, strict=True
        )
    ]
    padding = [(b + g // 2, e + g - g // 2) for (b, e), g in zip(spec.padding, grown, strict=True)]
    want = oracle.conv_transpose(
        case.x,
        kernel,
        case.bias,
        spec.stride,
        padding,
        spec.output_padding,
        spec.dilation,
        spec.groups,
    )
    np.testing.assert_allclose(run_form("resize", case, settings), want, rtol=0, atol=1e-9)


@given(cases(), interpolations)
def test_resize_keeps_the_total_gain(case, interpolation):
    _, kernel = form("resize").equivalent(case.spec, Settings(interpolation), case.weight)
    axes = tuple(range(2, kernel.ndim))
    np.testing.assert_allclose(kernel.sum(axes), case.weight.sum(axes), rtol=0, atol=1e-9)


@given(cases(), interpolations)
def test_resize_has_no_ripple(case, interpolation):
    """Every phase sum is the same, whatever the weights: compared to the kernel's magnitude."""
    spec, kernel = form("resize").equivalent(case.spec, Settings(interpolation), case.weight)
    assert spread_of_phases(spec, kernel) <= 1e-12 * max(1.0, np.abs(kernel).sum())


@given(cases())
def test_equalized_has_no_ripple_or_is_refused(case):
    settled = form("equalized").settle(case.spec, Settings(), lambda: case.weight)
    counts = [
        np.bincount(phase, minlength=s)
        for phase, s in zip(phases_of(case.spec), case.spec.stride, strict=True)
    ]
    assert isinstance(settled, Refusal) == any(0 in count for count in counts)
    if not isinstance(settled, Refusal):
        new = form("equalized").fit(case.spec, settled.settings, case.weight)
        assert spread_of_phases(case.spec, new) <= 1e-12 * max(1.0, np.abs(new).sum())


reaches = st.builds(
    Settings,
    init=st.just("fit"),
    reach=st.integers(1, 3),
    grow=st.integers(0, 1),
    strength=st.sampled_from([1.0, 0.25]),
)


def has_all_phases(case):
    settled = form("equalized").settle(case.spec, Settings(), lambda: case.weight)
    return not isinstance(settled, Refusal)


@given(cases(), reaches)
def test_notch_takes_out_the_grid_of_local_means(case, settings):
    """By definition: y = x (*) W - h*x (*) sI, I the part of W with unequal phase sums.

    Exact in real numbers; float64 rounds values below 1e4 to far less than 1e-9.
    """
    if not has_all_phases(case):
        return
    full = replace(settings, strength=1.0)
    spec, even = form("equalized").equivalent(case.spec, full, case.weight)
    margins = [
        ((new - old) // 2,) * 2
        for new, old in zip(spec.kernel_size, case.spec.kernel_size, strict=True)
    ]
    uneven = settings.strength * (np.pad(case.weight, [(0, 0), (0, 0), *margins]) - even)
    geometry = (spec.stride, spec.padding, spec.output_padding, spec.dilation, spec.groups)
    means = oracle.local_mean(case.x, [settings.reach if s > 1 else 0 for s in spec.stride])
    grid = oracle.conv_transpose(means, uneven, None, *geometry)
    np.testing.assert_allclose(
        run_form("notch", case, settings), case.expected - grid, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["notch", "subpixel"])
def test_notch_has_no_grid_on_constants(name):
    """In the interior; the sub-pixel form, the same function as the layer, is the control."""
    spec = ConvTransposeSpec.create(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), groups=2)
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(spec.weight_shape)
    x = rng.standard_normal((1, 4, 1, 1)) + np.zeros((12, 10))
    compiled = form(name).compile(spec, Settings())
    kernel = form(name).fit(spec, Settings(), weight)
    y = run(compiled.steps, x, rearrange(compiled.weight, kernel, 2))[0, :, 2:-2, 3:-3]
    assert (float(np.ptp(y.reshape(6, -1), axis=1).max()) < 1e-12) == (name == "notch")


def test_a_layer_without_a_grid_becomes_its_subpixel_form():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    match = Match("up", "op", spec, "float32", read_weight=lambda: bilinear(spec))
    (decision,) = make_plan([match], Options(to="notch", init="calibrated")).decisions
    assert (decision.form, decision.exact, decision.settings.init) == ("subpixel", True, "exact")


def phases_of(spec):
    return phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)


def spread_of_phases(spec, kernel):
    sums = phase_sums(kernel, phases_of(spec), spec.stride)
    return float(np.ptp(sums.reshape(*sums.shape[:2], -1), axis=-1).max(initial=0))


@given(cases())
def test_equalized_is_the_smallest_correction(case):
    """Against numpy's minimum-norm solution of the constraints 'all phase sums are equal'."""
    spec = case.spec
    if isinstance(form("equalized").settle(spec, Settings(), lambda: case.weight), Refusal):
        return
    size, phases = math.prod(spec.kernel_size), math.prod(spec.stride)
    member = np.stack(
        [
            phase_sums(unit.reshape(1, 1, *spec.kernel_size), phases_of(spec), spec.stride).ravel()
            for unit in np.eye(size)
        ],
        axis=1,
    )
    differences = member[1:] - member[:1]
    flat = case.weight.reshape(-1, size)
    change = -np.linalg.pinv(differences) @ differences @ flat.T if phases > 1 else 0 * flat.T
    want = (flat + change.T).reshape(case.weight.shape)
    new = form("equalized").fit(spec, Settings(), case.weight)
    np.testing.assert_allclose(new, want, rtol=0, atol=1e-9)


@given(cases(), interpolations)
def test_resize_fit_is_the_least_squares_solution(case, interpolation):
    """No other kernel of the same gain comes closer: moving w along the constraint does not help."""
    spec, resize = case.spec, form("resize")
    settings = Settings(interpolation)
    kernel = resize.fit(spec, settings, case.weight)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(kernel.shape)
    direction -= direction.mean(tuple(range(2, kernel.ndim)), keepdims=True)

    def distance(w):
        reached = apply_operators(w, resize.operators(spec, settings))
        return float(((reached - resize.target(spec, settings, case.weight)) ** 2).sum())

    best = distance(kernel)
    for step in (1e-3, -1e-3):
        assert best <= distance(kernel + step * direction) + 1e-9


def bilinear(spec):
    """The kernel of bilinear upsampling, as FCN initialises it: k = 2s - s mod 2."""
    kernel = np.ones(())
    for s in spec.stride:
        k = 2 * s - s % 2
        taps = 1 - np.abs(np.arange(k) - (k - 1) / 2) / s
        kernel = np.multiply.outer(kernel, taps)
    return np.broadcast_to(kernel, (*spec.weight_shape[:2], *kernel.shape)).copy()


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("stride", [(2, 2), (2, 4), (3, 2), (8,), (2, 1, 3)], ids=str)
def test_bilinear_kernels_divide_and_stay_the_same_function(stride, interpolation):
    kernel_size = tuple(2 * s - s % 2 for s in stride)
    spec = ConvTransposeSpec.create(
        6,
        4,
        kernel_size,
        stride=stride,
        padding=[s // 2 for s in stride],
        groups=2,
    )
    rng = np.random.default_rng(3)
    weight = bilinear(spec) * rng.integers(1, 5, spec.weight_shape[:2] + (1,) * spec.ndim)
    settled = form("resize").settle(spec, Settings(interpolation), lambda: weight)
    assert settled.exact
    assert settled.settings.init == "exact"
    assert "the same function" in settled.note
    x = rng.integers(-3, 4, (2, 6, *(3 + i for i in range(spec.ndim)))).astype(np.float64)
    bias = rng.integers(-3, 4, 4).astype(np.float64)
    want = oracle.conv_transpose(
        x, weight, bias, stride, spec.padding, spec.output_padding, spec.dilation, 2
    )
    compiled = form("resize").compile(spec, settled.settings)
    kernel = form("resize").fit(spec, settled.settings, weight)
    got = run(compiled.steps, x, rearrange(compiled.weight, kernel, 2), bias)
    # Rounding of the fit in float64, values below 100.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def test_a_border_mode_of_one_s_own_makes_a_dividing_kernel_inexact():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    settled = form("resize").settle(spec, Settings(padding_mode="reflect"), lambda: bilinear(spec))
    assert not settled.exact
    assert "but for the reflect border" in settled.note


def test_trained_kernels_do_not_divide():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    settled = form("resize").settle(spec, Settings(), lambda: weight)
    assert not settled.exact
    assert 0.1 < settled.relative_residual < 1
    refusal = form("resize").settle(spec, Settings(init="exact"), lambda: weight)
    assert isinstance(refusal, Refusal)
    assert "does not divide" in refusal.sentence("up")


def test_random_init_is_seeded():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.ones(spec.weight_shape)

    def drawn(seed):
        return form("resize").fit(spec, Settings(init="random", seed=seed), weight)

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


@pytest.mark.parametrize(
    ("geometry", "ratio"),
    [
        ({"kernel_size": (4, 4), "stride": 2, "padding": 1}, 1.0),
        ({"kernel_size": (3, 3), "stride": 2, "padding": 1, "output_padding": 1}, 16 / 9),
        ({"kernel_size": (2, 2), "stride": 2}, 1.0),
        ({"kernel_size": (1, 1), "stride": 2}, 1.0),
        ({"kernel_size": (3, 3), "stride": 5}, 1.0),
        ({"kernel_size": (16,), "stride": 8, "padding": 4}, 1.0),
        ({"kernel_size": (3, 3), "stride": 1, "dilation": 4}, 1.0),
        ({"kernel_size": (3, 3), "stride": 2, "dilation": 4}, 1.0),
        ({"kernel_size": (4, 4), "stride": 4, "dilation": 2}, 1.0),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_multiply_accumulates_of_subpixel(geometry, ratio):
    """Design section 2: prod(q*s / k), and phases that no tap reaches cost nothing."""
    spec = ConvTransposeSpec.create(6, 4, groups=2, **geometry)
    compiled = form("subpixel").compile(spec, Settings())
    assert compiled.macs_per_position / spec.macs_per_position() == pytest.approx(ratio)


def test_the_usual_layer_becomes_conv_shuffle_crop():
    spec = ConvTransposeSpec.create(3, 5, (4, 4), stride=2, padding=1)
    conv = Conv(3, 20, (2, 2), (1, 1), (1, 1), 1, True)
    assert form("subpixel").compile(spec, Settings()).steps == (
        conv,
        PixelShuffle((2, 2)),
        Crop(((1, 1), (1, 1))),
    )


def test_stride_one_becomes_a_plain_convolution():
    spec = ConvTransposeSpec.create(3, 5, (3, 5), padding=(1, 4))
    (conv,) = form("subpixel").compile(spec, Settings()).steps
    assert conv == Conv(3, 5, (3, 5), (1, 0), (1, 1), 1, True)


def test_a_weight_that_would_explode_is_refused():
    spec = ConvTransposeSpec.create(64, 64, (3, 3), stride=2, dilation=100_001)
    refusal = form("subpixel").settle(spec, Settings(), None)
    assert isinstance(refusal, Refusal)
    assert "elements instead of" in refusal.found
    assert "exclude it" in refusal.todo


def test_a_huge_stride_is_not_refused():
    """Phases that no tap reaches are not computed, so only the output is large."""
    spec = ConvTransposeSpec.create(64, 64, (3, 3), stride=100_000)
    assert not isinstance(form("subpixel").settle(spec, Settings(), None), Refusal)


@pytest.mark.parametrize(
    ("name", "spec", "settings", "readable", "fragments"),
    [
        ("subpixel", {}, {"init": "fit"}, True, ["takes the trained weight as it is"]),
        ("resize", {}, {}, False, ["computed while the model runs", "'subpixel'"]),
        ("resize", {}, {"init": "exact"}, True, ["does not divide", "'fit'"]),
        ("equalized", {}, {"init": "random"}, True, ["corrects the trained weight"]),
        ("equalized", {}, {"init": "exact"}, True, ["phase sums differ"]),
        ("equalized", {}, {}, False, ["a stored weight is needed"]),
        ("equalized", {"kernel_size": (4, 1)}, {}, True, ["axis 1", "1 of the 2 phases"]),
        ("equalized", {"dilation": 2}, {}, True, ["axis 0", "dilation 2"]),
        ("resize", {"dilation": 99_999}, {}, True, ["elements instead of"]),
        ("notch", {}, {"init": "random"}, True, ["keeps the trained weight"]),
        ("notch", {}, {"init": "exact"}, True, ["phase sums differ"]),
        ("notch", {}, {}, False, ["a stored weight is needed"]),
        ("notch", {"kernel_size": (4, 1)}, {}, True, ["axis 1", "1 of the 2 phases"]),
        ("notch", {"dilation": 99_999}, {}, True, ["elements instead of"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_say_what_to_do(name, spec, settings, readable, fragments):
    spec = ConvTransposeSpec.create(
        **{"in_channels": 3, "out_channels": 5, "kernel_size": (4, 4), "stride": 2} | spec
    )
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    refusal = form(name).settle(spec, Settings(**settings), (lambda: weight) if readable else None)
    assert isinstance(refusal, Refusal)
    text = refusal.sentence("decoder.up")
    assert text.startswith("decoder.up: ")
    assert all(fragment in text for fragment in fragments)


def test_equalized_leaves_even_kernels_alone():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    settled = form("equalized").settle(spec, Settings(), lambda: bilinear(spec))
    assert settled.exact
    assert "equal already" in settled.note


def test_ripple_of_a_bilinear_kernel_is_none_and_of_a_single_tap_is_not():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    assert ripple_db(spec, bilinear(spec)) == LOWEST_DB
    one = np.zeros(spec.weight_shape)
    one[..., 0, 0] = 1
    # phase sums 1, 0, 0, 0: deviations rms sqrt(3)/4 over mean 1/4
    assert ripple_db(spec, one) == pytest.approx(20 * math.log10(math.sqrt(3)))


# Negative controls: the equality above notices each of the classical mistakes.


def break_phases(compiled, weight):
    return compiled.steps, weight[[1, 0, *range(2, len(weight))]]


def break_crop(compiled, weight):
    steps = tuple(
        Crop(tuple((b - 1, e + 1) for b, e in step.amounts)) if isinstance(step, Crop) else step
        for step in compiled.steps
    )
    return steps, weight


def break_flip(compiled, weight):
    return compiled.steps, weight[..., ::-1]


def break_channel_order(compiled, weight):
    """DepthToSpace mode DCR instead of CRD: phase-major instead of channel-major."""
    phases = 4
    order = np.arange(len(weight)).reshape(-1, phases).T.ravel()
    return compiled.steps, weight[order]


@pytest.mark.parametrize(
    "mistake", [break_phases, break_crop, break_flip, break_channel_order], ids=lambda f: f.__name__
)
def test_mistakes_are_noticed(mistake):
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (1, 2, 3, 5)).astype(np.float64)
    weight = rng.integers(-3, 4, spec.weight_shape).astype(np.float64)
    compiled = form("subpixel").compile(spec, Settings())
    new = rearrange(compiled.weight, weight)
    want = oracle.conv_transpose(x, weight, None, (2, 2), spec.padding, (0, 0), (1, 1), 1)
    assert np.array_equal(run(compiled.steps, x, new), want)
    steps, broken = mistake(compiled, new)
    assert not np.array_equal(run(steps, x, broken), want)


def test_form_names_are_unique():
    assert len({each.name for each in FORMS}) == len(FORMS) == 4


def test_settings_of_a_form_are_complete_after_settling():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    settled = form("resize").settle(spec, Settings(), lambda: weight)
    assert settled.settings == replace(Settings(), padding_mode="reflect", init="fit")
