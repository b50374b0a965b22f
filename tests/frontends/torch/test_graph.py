"""The graph pass, on traced graphs and on exported programs."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import deconvfix
from deconvfix.frontends.torch.calls import executed_transposed_convolutions
from deconvfix.fx import ReplaceTransposedConvs


class Net(nn.Module):
    """A layer, a call with a stored weight, one with a computed weight, and a mutated buffer."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 2))
        self.register_buffer("count", torch.zeros(1))
        for parameter in self.parameters():
            parameter.data = torch.randint_like(parameter, -2, 3)

    def forward(self, x):
        self.count.add_(1)
        y = F.conv_transpose2d(self.up(x), self.weight, stride=(2, 1), padding=1)
        return y, F.conv_transpose2d(y, self.weight.permute(1, 0, 2, 3), dilation=2)


@pytest.fixture
def net():
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randint(-2, 3, (2, 3, 5, 6)).double()


def assert_same(got, want):
    assert len(got) == len(want)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


def test_traced_graphs_in_a_pass_manager(net, x):
    traced = fx.symbolic_trace(copy.deepcopy(net))
    result = PassManager([ReplaceTransposedConvs()])(traced)
    assert result.modified
    assert_same(result.graph_module(x), net(x))
    assert executed_transposed_convolutions(result.graph_module, (x,)) == []


def test_a_second_pass_changes_nothing(net, x):
    traced = fx.symbolic_trace(net)
    first = ReplaceTransposedConvs()(traced)
    code = first.graph_module.code
    second = ReplaceTransposedConvs()(first.graph_module)
    assert not second.modified
    assert second.graph_module.code == code


def test_convert_gives_a_graph_module_back(net, x):
    traced = fx.symbolic_trace(net)
    conversion = deconvfix.convert(traced, example_inputs=(x,))
    assert isinstance(conversion.model, fx.GraphModule)
    assert [layer.decision for layer in conversion.report.layers] == ["replaced"] * 3
    assert_same(conversion.model(x), net(x))
    assert executed_transposed_convolutions(traced, (x,)) != []


def test_excluded_nodes_stay(net, x):
    traced = fx.symbolic_trace(net)
    result = ReplaceTransposedConvs(exclude=("conv_transpose2d_1",))(traced)
    assert len(executed_transposed_convolutions(result.graph_module, (x,))) == 1
    assert_same(result.graph_module(x), net(x))


# torch's own decomposition pass warns about its own tree code.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_the_graph_of_an_exported_program(net, x, strict, decomposed):
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}}
    program = torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=strict)
    if decomposed:
        program = program.run_decompositions()
    result = ReplaceTransposedConvs()(program.graph_module)
    assert result.modified
    program.validate()
    other = torch.randint(-2, 3, (3, 3, 7, 6)).double()
    module = program.module()
    assert_same(module(other), net(other))
    assert executed_transposed_convolutions(module, (other,)) == []
    assert float(module.count) > 0


def test_complex_calls_are_refused_in_the_plan():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2, 4, dtype=torch.complex64))

        def forward(self, x):
            return F.conv_transpose1d(x, self.weight, stride=2)

    traced = fx.symbolic_trace(Complex())
    (decision,) = ReplaceTransposedConvs().plan(traced).decisions
    assert decision.decision == "refused"
    assert "complex64" in decision.reason


def test_a_pass_has_no_inputs_to_fit_to(net):
    traced = fx.symbolic_trace(net)
    layer, *_ = ReplaceTransposedConvs(to="resize").plan(traced).decisions
    assert layer.decision == "refused"
    assert "there are no inputs to fit it to" in layer.reason
    assert not ReplaceTransposedConvs(to="resize")(traced).modified


def test_other_forms_replace_layers_and_refuse_calls(net, x):
    traced = fx.symbolic_trace(net)
    plan = ReplaceTransposedConvs(to="resize", init="fit").plan(traced)
    assert [each.decision for each in plan.decisions] == ["replaced", "refused", "refused"]
    result = ReplaceTransposedConvs(to="resize", init="fit")(traced)
    assert [tuple(y.shape) for y in result.graph_module(x)] == [tuple(y.shape) for y in net(x)]


def exported(net, x):
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}}
    return torch.export.export(net, (x,), dynamic_shapes=dynamic)


def test_convert_gives_an_exported_program_back(net, x):
    program = exported(net, x)
    conversion = deconvfix.convert(program, example_inputs=(x,))
    assert isinstance(conversion.model, torch.export.ExportedProgram)
    assert [layer.decision for layer in conversion.report.layers] == ["replaced"] * 3
    assert conversion.report.parity.ok
    assert conversion.report.still_running == ()
    assert conversion.model.graph_signature == program.graph_signature
    assert conversion.model.range_constraints == program.range_constraints
    other = torch.randint(-2, 3, (3, 3, 7, 6)).double()
    assert_same(conversion.model.module()(other), net(other))
    assert len(executed_transposed_convolutions(program.module(), (x,))) == 3


def test_an_input_called_like_a_builtin_keeps_its_name():
    layer = nn.ConvTranspose1d(2, 3, 4, 2)
    program = torch.export.export(layer, (torch.randn(1, 2, 5),))
    converted = deconvfix.convert(program).model
    assert converted.graph_signature.user_inputs == ("input",)
    converted.validate()


def test_a_program_is_proven_on_its_own_example_inputs(net, x):
    report = deconvfix.convert(exported(net, x)).report
    assert {each.what for each in report.parity.comparisons} >= {"output 0", "output 1"}


def test_a_converted_program_loads_without_deconvfix(net, x, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(deconvfix.convert(exported(net, x)).model, path)
    torch.save((x, net(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        f"x, want = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"got = torch.export.load({str(path)!r}).module()(x)\n"
        "assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want))\n"
        "assert 'deconvfix' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_wrong_program_is_noticed(net, x):
    program = exported(net, x)
    converted = deconvfix.convert(program).model
    node = next(n for n in converted.graph.nodes if n.target is torch.ops.aten.flip.default)
    node.replace_all_uses_with(node.args[0])
    converted.graph.erase_node(node)
    converted.graph_module.recompile()
    assert not deconvfix.verify(program, converted, (x,)).ok
