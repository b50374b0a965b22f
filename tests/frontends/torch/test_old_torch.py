"""What is done where torch lacks something newer: branches of old versions, taken in this one.

docs/versions.md has the rows in which such a version itself ran the tests.
"""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deconvfix import Tuning, convert, export_onnx
from deconvfix.errors import ExportError
from deconvfix.frontends.torch import export
from deconvfix.frontends.torch.tuning.descent import Descent


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 5, (4, 3), (2, 3), (1, 0))

    def forward(self, low, scale=None):
        return self.up(low) if scale is None else self.up(low * scale)


def integers(*shape):
    return torch.from_numpy(np.random.default_rng(1).integers(-3, 4, shape).astype(np.float32))


@pytest.fixture
def net():
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(integers(*parameter.shape))
    return net


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.setattr(export, "_CAPTURES", False)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_module_is_traced_with_dynamic_axes(net, tmp_path, names):
    low, scale = integers(2, 3, 5, 6), torch.tensor([2.0])
    model = convert(net, example_inputs=((low,), {"scale": scale})).model
    report = export_onnx(
        model,
        tmp_path / "net.onnx",
        ((low,), {"scale": scale}),
        dynamic_shapes={"low": {0: "batch", 2: torch.export.Dim("rows")}},
        input_names=names,
    )
    assert report.parity.ok
    assert "ConvTranspose" not in report.operators
    graph = onnx.load(report.path).graph
    first, second = names or ("low", "scale")
    assert [value.name for value in graph.input] == [first, second]
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "rows", 6]
    other = integers(1, 3, 7, 6)
    session = onnxruntime.InferenceSession(report.path)
    (found,) = session.run(None, {first: other.numpy(), second: scale.numpy()})
    assert np.array_equal(found, net(other, scale).detach().numpy())


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("inputs", "axes", "found"),
    [
        ((integers(2, 3, 5, 6), 2.0), None, "there is an input that is no tensor"),
        ((integers(2, 3, 5, 6),), ({0: "batch"},), "axes are not given by names"),
    ],
    ids=["a number", "axes by position"],
)
def test_what_cannot_be_traced_is_refused(net, tmp_path, inputs, axes, found):
    with pytest.raises(ExportError, match=f"{found}.* torch 2.9 or newer exports it"):
        export_onnx(net, tmp_path / "net.onnx", inputs, dynamic_shapes=axes)
    assert not list(tmp_path.iterdir())


class Branches(Net):
    def forward(self, low, scale=None):
        return self.up(low) if float(low.sum()) > 0 else self.up(-low)


class ByName(Net):
    def forward(self, *, low):
        return self.up(low)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Branches(), "depends on the values of its inputs.* torch 2.9 or newer"),
        (ByName(), "by name alone.* torch 2.9 or newer"),
    ],
    ids=["branches by value", "arguments by name"],
)
def test_a_trace_that_would_miss_something_is_refused(tmp_path, model, found):
    with pytest.raises(ExportError, match=found):
        export_onnx(model, tmp_path / "net.onnx", ((), {"low": integers(2, 3, 5, 6)}))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("traced")
def test_a_program_is_refused(net, tmp_path):
    program = torch.export.export(net, (integers(2, 3, 5, 6),))
    with pytest.raises(ExportError, match=r"it is a program, and torch .* 2\.9 or newer"):
        export_onnx(program, tmp_path / "net.onnx")


def test_without_muon_adam_moves_all(monkeypatch):
    """Both parameters reach their goals; the first one is a matrix, which Muon would move."""
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    goals = [integers(9, 10), integers(4)]
    parameters = [nn.Parameter(torch.zeros_like(goal)) for goal in goals]

    def loss(batch=None):
        pairs = zip(parameters, goals, strict=True)
        return sum((own - goal).square().mean() for own, goal in pairs)

    _, best = Descent(
        parameters=parameters,
        matrices=1,
        batches=itertools.repeat([]),
        loss=loss,
        heldout_loss=lambda: loss().item(),
        tuning=Tuning(steps=300, learning_rate=0.1),
    ).run()
    assert best.loss < 1e-2 < float(sum(goal.square().mean() for goal in goals))


def test_without_set_stance_models_run(monkeypatch, net):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    conversion = convert(net, example_inputs=(integers(2, 3, 5, 6),))
    assert conversion.report.parity.ok
    assert conversion.report.still_running == ()
