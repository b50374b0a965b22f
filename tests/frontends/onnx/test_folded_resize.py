"""Resize-convolutions that are folded while they are written: upsampling and a convolution by definition."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import deconvfix
from deconvfix.__main__ import main
from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.onnx.frontend import ReplaceTransposedConvs
from deconvfix.frontends.onnx.proto import from_proto
from deconvfix.parity.bounds import LIMIT
from deconvfix.parity.definition import by_definition
from deconvfix.plan import Plan
from deconvfix.targets.profile import profiles
from tests.support.forms import padding_modes
from tests.support.onnx_layers import layer_of
from tests.support.onnx_models import operators, run
from tests.support.strategies import cases

FIT = {"to": "resize", "init": "fit"}


def expected(spec, weight, bias, x, **chosen):
    """What upsampling and a convolution give, and how far rounding may move it."""
    resize, choices = form("resize"), Settings(init="fit", **chosen)
    compiled = resize.compile(spec, choices)
    kernel = rearrange(compiled.weight, resize.fit(spec, choices, weight), spec.groups)
    bound = by_definition(compiled, x, kernel, bias, float(np.finfo(np.float32).eps))
    return bound.value, LIMIT * bound.rounding


@pytest.mark.parametrize("target", [None, *profiles()])
@settings(max_examples=8, deadline=None)
@given(case=cases(), mode=padding_modes, is_open=st.booleans())
def test_what_is_folded_is_the_definition(target, case, mode, is_open):
    spec, x = case.spec, case.x[:1]
    sizes = ["a", "b", "c"][: spec.ndim] if is_open else x.shape[2:]
    before = layer_of(spec, case.weight, case.bias, sizes)
    try:
        done = deconvfix.convert(before, target=target, padding_mode=mode, verify=False, **FIT)
    except deconvfix.ModelError as error:
        assert f"the target {target!r} says" in str(error)  # noqa: PT017
        return
    (decision,) = done.plan.decisions
    folded = decision.decision == "replaced" and ", folded" in decision.reason
    assert not (folded and "Resize" in operators(done.model))
    # ONNX Runtime's own Pad reflects no map that is smaller than the border, where sizes are open.
    if folded or (decision.decision == "replaced" and not is_open):
        (got,) = run(done.model, {"x": x.astype(np.float32)})
        want, bound = expected(spec, case.weight, case.bias, x, padding_mode=mode)
        assert got.shape == want.shape
        assert (np.abs(got - want) <= bound).all()


def layer(k, s, p, op=0, ndim=2, sizes=(5, 6, 3), seed=0):
    spec = ConvTransposeSpec.create(
        3, 2, (k,) * ndim, stride=(s,) * ndim, padding=(p,) * ndim, output_padding=(op,) * ndim
    )
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(spec.weight_shape)
    return layer_of(spec, weight, rng.standard_normal(2), sizes[:ndim])


@pytest.mark.parametrize(
    ("model", "ratio", "apart"),
    [(layer(4, 2, 1), 1.0, 2.25), (layer(3, 2, 1, 1), 1.0, 16 / 9), (layer(16, 8, 4, ndim=1), 1.0, 4.5)],
    ids=["k4 s2", "k3 s2", "k16 s8 1-D"],
)  # fmt: skip
def test_by_default_it_is_folded(model, ratio, apart):
    done = deconvfix.convert(model, **FIT)
    (row,) = done.report.layers
    assert row.reason.endswith("reflect border, folded")
    assert row.macs_after / row.macs_before == ratio
    assert "Resize" not in operators(done.model)
    assert done.report.parity.ok
    assert row.ripple_db_after < -120
    left = deconvfix.convert(model, fold=False, **FIT)
    (row,) = left.report.layers
    assert "fold" not in row.reason
    assert row.macs_after / row.macs_before == pytest.approx(apart)
    assert "Resize" in operators(left.model)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (layer(4, 2, 1), {"interpolation": "linear"}),
        (layer(5, 2, 2, 1), {}),
        (layer(2, 2, 0), {}),
        # One convolution for all phases, as open sizes need it, would save nothing.
        (layer(3, 2, 1, 1, sizes=("a", "b")), {}),
    ],
    ids=["linear", "wide reflection", "one tap", "open sizes"],
)
def test_what_stays_apart(model, options):
    done = deconvfix.convert(model, **FIT, **options)
    assert "Resize" in operators(done.model)
    assert done.report.parity.ok
    # Where it is asked for, the row says why.
    (row,) = deconvfix.convert(model, fold=True, **FIT, **options).report.layers
    assert ", not folded (" in row.reason


def test_open_sizes_get_one_convolution():
    done = deconvfix.convert(layer(4, 2, 1, sizes=("a", "b")), **FIT)
    assert {"DepthToSpace"} <= set(operators(done.model))
    assert "Resize" not in operators(done.model)


def test_a_calibration_that_chooses_the_border():
    """Reflection is too wide here, and the border that fits best is zeros: that one folds."""
    model = layer(5, 2, 2, 1)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((1, 3, 5, 6)).astype("float32"),) for _ in range(4)]
    done = deconvfix.convert(model, to="resize", calibration=batches)
    (row,) = done.report.layers
    assert row.reason.endswith("zeros border, folded")
    assert done.report.parity.ok
    apart = deconvfix.convert(model, to="resize", calibration=batches, fold=False)
    assert row.macs_after / apart.report.layers[0].macs_after == 36 / 64
    x = {"x": batches[0][0]}
    np.testing.assert_allclose(run(done.model, x)[0], run(apart.model, x)[0], rtol=0, atol=1e-4)


def test_the_recipe_says_it():
    model = layer(4, 2, 1)
    done = deconvfix.convert(model, **FIT)
    again = deconvfix.convert(model, plan=Plan.from_json(done.plan.to_json()))
    assert again.model == done.model
    # A recipe of before there was a choice.
    data = json.loads(deconvfix.convert(model, fold=False, **FIT).plan.to_json())
    del data["decisions"][0]["settings"]["fold"]
    old = deconvfix.convert(model, plan=Plan.from_json(json.dumps(data)))
    assert "Resize" in operators(old.model)


@pytest.mark.parametrize("sizes", [(5, 6), ("a", "b")], ids=str)
def test_no_grid_is_seen_in_it(sizes):
    """Sums of taps are rounded: -140 dB. Converted again, it stays as it is."""
    done = deconvfix.convert(layer(4, 2, 1, sizes=sizes), **FIT)
    constant = np.full((1, 3, 5, 6), 0.5, np.float32)
    (flat,) = run(done.model, {"x": constant})
    inside = flat[..., 3:-3, 3:-3]
    assert np.ptp(inside, axis=(2, 3)).max() <= 1e-6 * np.abs(inside).max()
    for found in deconvfix.inspect(done.model, (constant,)).layers:
        assert found.sum_rule
        assert found.recommendation.form == "keep"
    again = deconvfix.convert(done.model, to="equalized", init="fit")
    assert not again.plan.changed
    # Negative control: with one tap of another size there is a grid.
    wrong = onnx.ModelProto.FromString(done.model.SerializeToString())
    stored = next(each for each in wrong.graph.initializer if len(each.dims) == 4)
    array = onnx.numpy_helper.to_array(stored).copy()
    array[0, 0, 0, 0] += 0.1
    stored.CopyFrom(onnx.numpy_helper.from_array(array, stored.name))
    (flat,) = run(wrong, {"x": constant})
    assert np.ptp(flat[..., 3:-3, 3:-3], axis=(2, 3)).max() > 0.01


@pytest.mark.parametrize("k", [3, 4])
def test_a_target_without_resize_gets_it_folded(tmp_path, k):
    path = tmp_path / "chip.toml"
    path.write_text('title = "chip"\n[forbidden]\nvalue = ["Resize"]\nsource = "sheet"')
    model = layer(k, 2, 1, 4 - k)
    done = deconvfix.convert(model, target=str(path), **FIT)
    assert "Resize" not in operators(done.model)
    assert ", folded, as " in done.plan["up"].reason
    assert done.report.parity.ok
    # Copies by Reshape and Concat stand for it otherwise.
    left = deconvfix.convert(model, target=str(path), fold=False, **FIT)
    assert "Concat" in operators(left.model)


@pytest.mark.parametrize(("fold", "apart"), [(None, False), (False, True)])
def test_the_pass_does_the_same(fold, apart):
    model = from_proto(layer(4, 2, 1))
    ReplaceTransposedConvs(fold=fold, **FIT)(model)
    assert ("Resize" in {node.op_type for node in model.graph}) == apart


@pytest.mark.parametrize(
    ("flags", "apart"), [([], False), (["--no-fold"], True), (["--fold"], False)]
)
def test_at_the_command_line(tmp_path, flags, apart):
    path, output = tmp_path / "net.onnx", tmp_path / "new.onnx"
    onnx.save(layer(4, 2, 1), path)
    arguments = ["convert", str(path), "--to", "resize", "--init", "fit", "-o", str(output), *flags]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert ("Resize" in operators(onnx.load(output))) == apart
    assert ("folded" in result.output) != apart
