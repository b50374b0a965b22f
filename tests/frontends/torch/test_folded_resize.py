"""Resize-convolutions that are folded in modules and programs, and in the files that are exported of them."""

import copy

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import deconvfix
from deconvfix.__main__ import main
from deconvfix.errors import ModelError
from deconvfix.frontends.program import folded as program_folded
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.plan import Plan
from tests.support.onnx_models import operators

FIT = {"to": "resize", "init": "fit"}
LAYERS = {
    "k4 s2": (nn.ConvTranspose2d(6, 4, 4, 2, 1), (2, 6, 5, 7)),
    "groups": (
        nn.ConvTranspose2d(6, 4, (4, 6), (2, 3), (1, 2), groups=2, bias=False),
        (1, 6, 5, 7),
    ),
    "one axis": (nn.ConvTranspose2d(6, 4, (3, 4), (1, 2), (2, 1), dilation=(2, 1)), (1, 6, 5, 7)),
    "k8 s4 1-D": (nn.ConvTranspose1d(6, 4, 8, 4, 2), (1, 6, 9)),
    "k4 s2 3-D": (nn.ConvTranspose3d(6, 4, 4, 2, 1), (1, 6, 3, 4, 5)),
}


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.up = copy.deepcopy(layer)

    def forward(self, x):
        return torch.relu(self.up(x))


def networks(name, seed=0):
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    net = Net(layer).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net, torch.randn(shape, generator=generator)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize("name", LAYERS)
def test_modules_and_programs_are_folded_where_it_is_asked_for(name, mode):
    net, x = networks(name)
    program = torch.export.export(net, (x,))
    options = FIT | {"padding_mode": mode}
    apart = deconvfix.convert(net, example_inputs=(x,), **options)
    assert "fold" not in apart.plan["up"].reason
    for model in (net, program):
        done = deconvfix.convert(model, example_inputs=(x,), fold=True, **options)
        (row,) = done.report.layers
        assert row.reason.endswith(f"{mode} border, folded")
        assert "Resize" not in row.steps
        assert row.macs_after < apart.report.layers[0].macs_after
        assert row.ripple_db_after < -120
        assert done.report.parity.ok
        got = done.model.module()(x) if model is program else done.model(x)
        torch.testing.assert_close(got, apart.model(x), rtol=1e-5, atol=1e-4)
        again = deconvfix.convert(model, plan=Plan.from_json(done.plan.to_json()))
        other = again.model.module()(x) if model is program else again.model(x)
        assert torch.equal(other, got)


def test_one_wrong_tap_of_a_folded_layer_is_noticed():
    """Negative control: by a hundredth of its weight."""
    net, x = networks("k4 s2")
    done = deconvfix.convert(net, example_inputs=(x,), fold=True, **FIT)
    assert compare_modules(net, done.model, [(x,)], done.plan).ok
    done.model.up.conv.weight.data[3, 2, 1, 0] += 0.01
    report = compare_modules(net, done.model, [(x,)], done.plan)
    assert not report.ok
    assert report.first_departure == "up"


def test_a_wrong_sum_in_a_program_is_noticed(monkeypatch):
    right = program_folded.summed_taps
    monkeypatch.setattr(program_folded, "summed_taps", lambda *given: right(*given).roll(1, -1))
    net, x = networks("k4 s2")
    with pytest.raises(deconvfix.ParityError):
        deconvfix.convert(torch.export.export(net, (x,)), fold=True, **FIT)


def test_a_program_goes_on_storing_the_taps_of_the_form():
    net, x = networks("k4 s2")
    program = torch.export.export(net, (x,))
    apart, folded = (deconvfix.convert(program, fold=fold, **FIT).model for fold in (None, True))
    assert folded.state_dict.keys() == apart.state_dict.keys()
    for name, stored in folded.state_dict.items():
        assert torch.equal(stored, apart.state_dict[name])


def test_a_calibrated_fit_is_the_same_function():
    net, x = networks("k4 s2")
    batches = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    apart, folded = (
        deconvfix.convert(net, to="resize", calibration=batches, fold=fold) for fold in (None, True)
    )
    assert folded.plan["up"].reason.endswith(", folded")
    assert folded.report.parity.ok
    torch.testing.assert_close(folded.model(x), apart.model(x), rtol=1e-4, atol=1e-4)


def test_an_output_size_of_its_own():
    """A reflection that is folded belongs to one size; other borders to any that the layer has."""
    layer, x = copy.deepcopy(LAYERS["k4 s2"][0]).eval(), torch.randn(1, 6, 5, 7)
    folded = deconvfix.convert(layer, fold=True, **FIT).model
    assert torch.equal(folded(x, output_size=(10, 14)), folded(x))
    with pytest.raises(
        ModelError, match=r"it is \(11, 15\), and the folded layer gives \(10, 14\)"
    ):
        folded(x, output_size=(11, 15))
    options = FIT | {"padding_mode": "replicate"}
    apart, folded = (deconvfix.convert(layer, fold=fold, **options).model for fold in (None, True))
    got = folded(x, output_size=(11, 15))
    torch.testing.assert_close(got, apart(x, output_size=(11, 15)), rtol=1e-5, atol=1e-5)


needs_capture = pytest.mark.skipif(torch.__version__ < "2.6", reason="torch 2.6 captures models")


@needs_capture
@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(("fold", "apart"), [(None, False), (False, True)])
def test_a_file_that_is_exported_is_folded(tmp_path, fold, apart, is_open):
    net, x = networks("k4 s2")
    done = deconvfix.convert(net, example_inputs=(x,), fold=fold, **FIT)
    before = copy.deepcopy(done.model.state_dict())
    shapes = {"x": {0: "batch", 2: "height", 3: "width"}} if is_open else None
    report = deconvfix.export_onnx(done.model, tmp_path / "net.onnx", (x,), dynamic_shapes=shapes)
    assert report.parity.ok
    assert ("Resize" in report.operators) == apart
    # The model itself can be trained as before.
    assert all(torch.equal(one, before[name]) for name, one in done.model.state_dict().items())


@needs_capture
@pytest.mark.parametrize(("flags", "apart"), [([], False), (["--no-fold"], True)])
def test_the_command_folds_what_it_exports(tmp_path, flags, apart):
    output = tmp_path / "digits.onnx"
    arguments = [
        *("convert", "fixtures/digits_generator.safetensors", "--input", "z=2x32x1x1"),
        *("--arch", "fixtures.models:digits_generator", "--to", "resize", "--init", "fit"),
        *("-o", str(output), *flags),
    ]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (", folded" in result.output) != apart
    assert ("Resize" in operators(onnx.load(output))) == apart
