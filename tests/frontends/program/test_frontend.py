"""The front end for torch.export programs: any geometry, graphs inside graphs, fitted forms, ONNX."""

import copy

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import nn

import deconvfix
from deconvfix.errors import DeconvfixError, ModelError, OptionError
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.program.frontend import FRONTEND
from deconvfix.frontends.torch import steps as torch_steps
from tests.support import strategies
from tests.support.forms import options_of
from tests.support.programs import export

# torch's own decomposition pass warns about its own tree code.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")


class Call(nn.Module):
    """One transposed convolution with a stored or a run-time weight."""

    def __init__(self, case, *, stored):
        super().__init__()
        self.spec = case.spec
        weight = torch.from_numpy(case.weight)
        self.weight = nn.Parameter(weight) if stored else None
        self.bias = None if case.bias is None else nn.Parameter(torch.from_numpy(case.bias))

    def forward(self, x, weight=None):
        spec = self.spec
        return getattr(F, f"conv_transpose{spec.ndim}d")(
            x,
            self.weight if weight is None else weight,
            self.bias,
            spec.stride,
            tuple(begin for begin, _ in spec.padding),
            spec.output_padding,
            spec.groups,
            spec.dilation,
        )


def conversions_agree(case, *, stored, decomposed):
    x = torch.from_numpy(case.x)
    inputs = (x,) if stored else (x, torch.from_numpy(case.weight))
    program = torch.export.export(Call(case, stored=stored), inputs)
    if decomposed:
        program = program.run_decompositions()
    converted = deconvfix.convert(program, verify=False)
    assert [each.decision for each in converted.report.layers] == ["replaced"]
    assert FRONTEND.left(converted.model, converted.plan, None) == []
    return torch.equal(converted.model.module()(*inputs), torch.from_numpy(case.expected))


# Every example exports a program, so there are few of them.
@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored weight", "run-time weight"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=strategies.cases(symmetric=True, torch_limits=True))
def test_every_geometry_is_the_same_function(stored, decomposed, case):
    assert conversions_agree(case, stored=stored, decomposed=decomposed)


class Net(nn.Module):
    """Layers, a buffer as weight, and a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.ConvTranspose2d(3, 4, 4, 2, 1)
        self.b = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2)
        self.register_buffer("w", torch.randn(4, 2, 4, 4))
        self.twice = nn.ConvTranspose2d(2, 2, 2, 2)

    def forward(self, x):
        y = F.conv_transpose2d(self.b(torch.relu(self.a(x))), self.w, stride=2, padding=1)
        return self.twice(self.twice(y))


class Branches(nn.Module):
    """Calls on both branches of a condition, and one in a region without gradients."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)

    def forward(self, x):
        def again(t):
            return F.conv_transpose2d(t, self.up.weight, stride=2, padding=1)

        y = torch.cond(x.sum() > 0, lambda t: again(t), lambda t: again(2 * t), (x,))
        with torch.no_grad():
            z = self.up(y)
        return y, z


def decisions(conversion):
    return {each.name: each.decision for each in conversion.report.layers}


def test_layers_go_by_the_paths_of_their_modules():
    program = export(Net())
    names = [each.name for each in deconvfix.inspect(program).layers]
    assert names == ["a", "b", "conv_transpose2d_2", "conv_transpose2d_3", "conv_transpose2d_4"]
    conversion = deconvfix.convert(program, include="a")
    assert decisions(conversion) == {name: "replaced" if name == "a" else "kept" for name in names}


def test_paths_survive_a_file(tmp_path):
    program_file.write(export(Net()), tmp_path / "net.pt2")
    loaded = program_file.read(tmp_path / "net.pt2")
    assert [each.name for each in deconvfix.inspect(loaded).layers][:2] == ["a", "b"]


def test_ripple_is_told_where_the_weight_is_stored():
    layers = deconvfix.inspect(export(Net())).layers
    assert all(each.ripple_db is not None for each in layers)
    case = deconvfix.inspect(export_with_weight()).layers
    assert [each.ripple_db for each in case] == [None]


def export_with_weight():
    class RunTime(nn.Module):
        def forward(self, x, weight):
            return F.conv_transpose1d(x, weight, stride=2)

    return torch.export.export(RunTime(), (torch.randn(1, 2, 5), torch.randn(2, 3, 4)))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_graphs_inside_graphs(strict, tmp_path):
    program = export(Branches(), strict=strict)
    x = torch.randn(2, 3, 6, 7)
    conversion = deconvfix.convert(program, example_inputs=(x,))
    assert list(decisions(conversion).values()) == ["replaced"] * 3
    assert "false_graph_0.conv_transpose2d" in decisions(conversion)
    assert conversion.report.parity.ok
    assert FRONTEND.left(program, conversion.plan, None) != []
    assert FRONTEND.left(conversion.model, conversion.plan, None) == []
    program_file.write(conversion.model, tmp_path / "net.pt2")
    loaded = program_file.read(tmp_path / "net.pt2").module()
    for inputs in (x.abs(), -x.abs()):
        for got, want in zip(loaded(inputs), program.module()(inputs), strict=True):
            torch.testing.assert_close(got, want)


def test_a_wrong_branch_is_noticed():
    program = export(Branches())
    changed = deconvfix.convert(program).model
    branch = changed.graph_module.get_submodule("true_graph_0")
    flip = next(n for n in branch.graph.nodes if n.target is torch.ops.aten.flip.default)
    flip.replace_all_uses_with(flip.args[0])
    branch.recompile()
    x = torch.randn(2, 3, 6, 7).abs()
    assert not deconvfix.verify(program, changed, (x,)).ok


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("grow", [0, 1])
@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_fitted_forms_equal_those_of_the_module(to, grow, decomposed):
    """Same plan, same kernels, same operators: nothing but the front end differs."""
    model = Net()
    program = export(model)
    if decomposed:
        program = program.run_decompositions()
    fitted = deconvfix.convert(program, to=to, init="fit", include=["a", "b"], grow=grow)
    assert fitted.report.parity.ok
    # float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of a few dozen of them.
    assert fitted.report.fidelity.ripple_db_after < -120
    assert fitted.report.fidelity.ripple_db_before > fitted.report.fidelity.ripple_db_after
    want = deconvfix.convert(model, to=to, init="fit", include=["a", "b"], grow=grow).model
    x = torch.randn(3, 3, 9, 7)
    torch.testing.assert_close(fitted.model.module()(x), want(x))
    assert (fitted.model.module()(x) - model(x)).abs().max() > 0.1
    assert fitted.model.graph_signature == program.graph_signature
    assert fitted.model.range_constraints == program.range_constraints


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_the_original_keeps_its_weights(to):
    program = export(Net())
    before = copy.deepcopy(dict(program.state_dict))
    deconvfix.convert(program, to=to, init="fit")
    assert all(torch.equal(program.state_dict[name], value) for name, value in before.items())


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_a_wrong_kernel_is_noticed(to):
    program = export(Net())
    conversion = deconvfix.convert(program, to=to, init="fit")
    report = FRONTEND.verify(program, conversion.model, [], conversion.plan)
    assert report.ok
    with torch.no_grad():
        conversion.model.state_dict["a.weight"].mul_(1.01)
    assert not FRONTEND.verify(program, conversion.model, [], conversion.plan).ok


class Few(nn.Module):
    """A call whose padding is left out, or a keyword."""

    def __init__(self, **options):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 2, 4, 5))
        self.options = options

    def forward(self, x):
        return F.conv_transpose2d(x, self.w, stride=2, **self.options)


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"padding": (2, 1), "dilation": (1, 3)}], ids=str
)
def test_the_padding_of_a_call_grows_with_its_kernel(options, decomposed):
    """Wherever the call says it: the module that is called with both grown is the same function."""
    model = Few(**options)
    program = export(model)
    if decomposed:
        program = program.run_decompositions()
    fitted = deconvfix.convert(program, to="equalized", init="fit", grow=1)
    assert fitted.model.state_dict["w"].shape == (3, 2, 6, 7)
    with torch.no_grad():
        model.w = nn.Parameter(fitted.model.state_dict["w"])
        model.options = {
            **options,
            "padding": [
                p + d
                for p, d in zip(
                    torch_steps.per_axis(options.get("padding", 0), 2),
                    torch_steps.per_axis(options.get("dilation", 1), 2),
                    strict=True,
                )
            ],
        }
        x = torch.randn(2, 3, 6, 7)
        torch.testing.assert_close(fitted.model.module()(x), model(x))
        assert fitted.model.module()(x).shape == program.module()(x).shape


def test_a_padding_that_did_not_grow_is_noticed():
    program = export(Net())
    conversion = deconvfix.convert(program, to="equalized", init="fit", grow=1)
    assert FRONTEND.verify(program, conversion.model, [], conversion.plan).ok
    node = next(
        each for each in conversion.model.graph.nodes if "conv_transpose" in str(each.target)
    )
    node.args = (*node.args[:4], [1, 1], *node.args[5:])
    conversion.model.graph_module.recompile()
    assert not FRONTEND.verify(program, conversion.model, [], conversion.plan).ok


def test_a_wrong_kernel_of_an_exact_resize_is_noticed():
    """Bilinear kernels divide: the same function, but in another form than the sub-pixel one."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    layer = nn.ConvTranspose2d(2, 3, 4, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.outer(taps, taps).expand(2, 3, 4, 4))
    program = torch.export.export(
        nn.Sequential(layer, nn.ReLU()).eval(), (torch.randn(1, 2, 5, 6),)
    )
    conversion = deconvfix.convert(
        program, to="resize", interpolation="linear", padding_mode="zeros"
    )
    assert conversion.report.layers[0].exact
    assert FRONTEND.verify(program, conversion.model, [], conversion.plan).ok
    with torch.no_grad():
        conversion.model.state_dict["0.weight"].mul_(1.01)
    assert not FRONTEND.verify(program, conversion.model, [], conversion.plan).ok


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)

    def forward(self, x):
        return self.up(x) * self.up.weight.mean()


class Mutated(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(3, 2, 4, 4))

    def forward(self, x):
        y = F.conv_transpose2d(x, self.w, stride=2)
        self.w.copy_(torch.ones(3, 2, 4, 4))
        return y


class Computed(Tied):
    def forward(self, x):
        return F.conv_transpose2d(x, self.up.weight * 2, stride=2)


@pytest.mark.parametrize(
    ("model", "decomposed", "reason"),
    [
        pytest.param(Tied, False, "used elsewhere too", id="tied"),
        pytest.param(Computed, False, "computed while the program runs", id="computed"),
        pytest.param(Mutated, True, "the program changes its weight w", id="mutated"),
    ],
)
@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_weights_that_cannot_be_fitted_are_refused(model, decomposed, reason, to):
    program = export(model())
    if decomposed:
        program = program.run_decompositions()
    (layer,) = deconvfix.convert(program, to=to, init="fit").report.layers
    assert layer.decision == "refused"
    assert reason in layer.reason
    (layer,) = deconvfix.convert(program).report.layers
    assert layer.decision == "replaced"


class Twice(nn.Module):
    """A layer that runs twice: two calls of one weight."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1)

    def forward(self, x):
        return self.up(torch.relu(self.up(x)))


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_the_calls_of_one_layer_are_converted_alike(to):
    program = torch.export.export(Twice().eval(), (torch.randn(1, 2, 5, 6),))
    got = deconvfix.convert(program, to=to, init="fit")
    names = [decision.name for decision in got.plan.changed]
    assert len(names) == 2
    assert got.report.parity.ok
    with pytest.raises(ModelError, match="the calls of one layer must be converted alike"):
        deconvfix.convert(program, to=to, init="fit", include=names[0])
    fits = {"init": "calibrated", "calibration": "normal"}
    calibrated = deconvfix.convert(program, to=to, **fits)
    assert calibrated.report.ok
    assert sum("several calls use its" in note for note in calibrated.report.notes) == 2


def test_a_recipe_of_another_program_is_refused():
    plan = deconvfix.convert(export(Net()), to="equalized", init="fit", include="a").plan
    other = Net()
    other.a = nn.ConvTranspose2d(3, 4, 2, 2)
    with pytest.raises(ModelError, match="the plan was made for"):
        FRONTEND.apply(export(other), plan)
    with pytest.raises(ModelError, match="a: the program has no such call"):
        FRONTEND.apply(export_with_weight(), plan)
    FRONTEND.apply(export(Net()), plan)


@pytest.mark.parametrize("to", ["subpixel", "resize"])
def test_a_program_is_exported_to_onnx(to, tmp_path):
    converted = deconvfix.convert(
        export(Net()), **options_of(to), exclude="conv_transpose2d_[34]"
    ).model
    report = deconvfix.export_onnx(converted, tmp_path / "net.onnx")
    assert report.parity.ok
    assert report.operators["ConvTranspose"] == 2
    heights = {shapes[0][2] for shapes in report.shapes}
    assert len(heights) > 1


def test_onnx_needs_the_programs_own_axes_and_inputs(tmp_path):
    program = export(Net())
    with pytest.raises(OptionError, match="dynamic axes are those"):
        deconvfix.export_onnx(program, tmp_path / "net.onnx", dynamic_shapes={"x": {0: "n"}})
    program.example_inputs = None
    with pytest.raises(DeconvfixError, match="there are no example inputs"):
        deconvfix.export_onnx(program, tmp_path / "net.onnx")


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 2, 4, 4))

    def forward(self, x):
        return torch.vmap(lambda each: F.conv_transpose2d(each[None], self.w, stride=2))(x)


def test_calls_inside_vmap_wait_for_a_decomposition():
    program = torch.export.export(Mapped(), (torch.randn(2, 3, 6, 7),))
    (layer,) = deconvfix.convert(program).report.layers
    assert "it runs inside torch.vmap" in layer.reason
    conversion = deconvfix.convert(program.run_decompositions())
    assert list(decisions(conversion).values()) == ["replaced"]


class Quantised(nn.Module):
    """What torch's quantisation of exported programs leaves of a layer's weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (4, 3, 4, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.tensor([0.5, 1.0, 2.0]))
        self.register_buffer("zeros", torch.zeros(3, dtype=torch.int64))

    def forward(self, x):
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.weight, self.scales, self.zeros, 1, -127, 127, torch.int8
        )
        return F.conv_transpose2d(x, weight, stride=2)


def test_integers_that_become_floats_are_noted():
    torch.manual_seed(0)
    x = torch.randint(-3, 4, (1, 4, 5, 6)).float()
    program = torch.export.export(Quantised(), (x,))
    conversion = deconvfix.convert(program)
    assert torch.equal(conversion.model.module()(x), program.module()(x))
    assert any("its weight is stored as integers" in note for note in conversion.report.notes)
    plain = deconvfix.convert(torch.export.export(nn.ConvTranspose2d(4, 3, 2), (x,)))
    assert not any("integers" in note for note in plain.report.notes)
