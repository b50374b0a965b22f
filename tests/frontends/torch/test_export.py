"""Exported files compute what the models compute, and the check of that can fail."""

import contextlib
import copy
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fixtures.models
from deconvfix import export_onnx
from deconvfix.errors import ExportError, OptionError
from deconvfix.files import sha256
from deconvfix.frontends.torch.export import OLDEST_OPSET, newest_opset
from tests.support.exports import Net, convert, integers, noise, seeded

# The versions of the operators that each file names; 18 is what torch writes without conversion.
OPSETS = [18, 20]

needs_capture = pytest.mark.skipif(torch.__version__ < "2.9", reason="torch 2.9 captures models")

FIXTURES = Path(fixtures.models.__file__).parent


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1)

    def forward(self, coarse, *, scale):
        return {"fine": self.up(coarse) * scale, "level": scale + 1}


class Branches(nn.Module):
    """What it does depends on values, which no exporter can capture."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(x) if float(x.sum()) > 0 else self.up(-x)


class MeanLevel(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(x).square().mean()


class Doubled(nn.Module):
    def forward(self, x):
        return x.float() * 2


def operators(path):
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def run(path, **feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feed.items()})


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (1, 2, 1, 1), (3, 2, 8, 4)], ids=str)
def test_file_computes_the_original_exactly(exported, original, shape):
    """Against torch's own transposed convolution; integers, so equality and no tolerance."""
    image = integers(*shape, seed=9)
    (got,) = run(exported[0], image=image)
    assert np.array_equal(got, original(image).detach().numpy())


def test_report_says_that_the_runtimes_agree(exported):
    assert exported[2].parity.ok


def test_no_transposed_convolution_is_left(exported):
    assert "ConvTranspose" not in operators(exported[0])


def test_report_counts_the_operators(exported):
    nodes = onnx.load(exported[0]).graph.node
    kinds = {node.op_type for node in nodes}
    assert exported[2].operators == {k: sum(n.op_type == k for n in nodes) for k in sorted(kinds)}


def test_dynamic_axes_have_their_names(exported):
    (image,) = onnx.load(exported[0]).graph.input
    sizes = [each.dim_param or each.dim_value for each in image.type.tensor_type.shape.dim]
    assert (image.name, sizes) == ("image", ["batch", 2, "height", "width"])


def test_dynamic_axes_are_tried_in_other_sizes(exported):
    shapes = {shape for (shape,) in exported[2].shapes}
    assert {(1, 2, 5, 6), (2, 2, 1, 6), (2, 2, 5, 14), (4, 2, 10, 12)} <= shapes


def test_an_opset_that_older_runtimes_read_is_the_default(exported):
    opsets = {each.domain: each.version for each in onnx.load(exported[0]).opset_import}
    assert opsets[""] == exported[2].opset == OLDEST_OPSET == 18 < newest_opset()


def test_metadata_is_written(exported):
    found = {each.key: each.value for each in onnx.load(exported[0]).metadata_props}
    assert found["author"] == "tests"
    assert found["deconvfix.torch"] == torch.__version__


def test_hash_is_that_of_the_file(exported):
    assert exported[2].sha256 == sha256(exported[0])


def test_one_file_is_written(exported):
    assert os.listdir(exported[0].parent) == ["net.onnx"]


def test_report_is_plain_data(exported):
    data = exported[2].to_dict()
    assert (data["opset"], data["parity"]["ok"]) == (OLDEST_OPSET, True)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.ConvTranspose1d(2, 3, 16, 8, 4), (2, 2, 5), id="1d k16 s8 p4"),
        pytest.param(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), (1, 4, 5, 6), id="2d groups"),
        pytest.param(nn.ConvTranspose2d(2, 3, 2, 3), (1, 2, 4, 5), id="2d stride above kernel"),
        pytest.param(
            nn.ConvTranspose3d(2, 3, (1, 4, 3), (1, 2, 2), (0, 1, 1), (0, 0, 1)),
            (1, 2, 3, 4, 5),
            id="3d anisotropic",
        ),
    ],
)
def test_converted_layer_is_exported_exactly(tmp_path, layer, shape):
    layer, x = seeded(layer), integers(*shape)
    report = export_onnx(convert(layer, x), tmp_path / "up.onnx", (x,))
    assert report.parity.ok
    assert "ConvTranspose" not in report.operators
    assert np.array_equal(run(tmp_path / "up.onnx", input=x)[0], layer(x).detach().numpy())


@needs_capture
def test_resize_form_is_exported(tmp_path):
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(2, 3, 4, 2, 1).eval(), noise(1, 2, 5, 6)
    report = export_onnx(
        convert(layer, x, to="resize", init="fit", interpolation="linear"),
        tmp_path / "up.onnx",
        (x,),
    )
    assert report.parity.ok
    assert "Resize" in report.operators


@pytest.mark.parametrize(
    ("name", "axes", "part"),
    [
        ("audio_upsampler", {0: "batch", 2: "frames"}, (..., slice(7))),
        ("digits_generator", {0: "batch"}, ()),
        ("photo_autoencoder", None, (..., slice(24), slice(32))),
        ("segmenter", None, (..., slice(24), slice(32))),
    ],
    ids=["audio", "digits", "photo", "segmenter"],
)
def test_trained_network_is_exported(tmp_path, name, axes, part):
    model = getattr(fixtures.models, name)()
    model.load_state_dict(load_file(FIXTURES / f"{name}.safetensors"))
    arrays = np.load(FIXTURES / f"{name}_heldout.npz")
    (argument,) = set(arrays.files) - {"target"}
    inputs = torch.from_numpy(arrays[argument][:2][part]).contiguous()
    report = export_onnx(
        convert(model.eval(), inputs),
        tmp_path / "net.onnx",
        (inputs,),
        dynamic_shapes=axes and {argument: axes},
    )
    assert report.parity.ok
    assert "ConvTranspose" not in report.operators


def test_example_may_be_a_slice_of_a_larger_tensor(tmp_path):
    model = fixtures.models.audio_upsampler().eval()
    spectrum = noise(2, 48, 16)[..., :7]
    axes = {"spectrum": {0: "batch", 2: "frames"}}
    export_onnx(model, tmp_path / "net.onnx", (spectrum,), dynamic_shapes=axes, verify=False)


@pytest.mark.parametrize("opset", OPSETS)
def test_opset_can_be_chosen(tmp_path, opset):
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    report = export_onnx(convert(layer, x), tmp_path / "up.onnx", (x,), opset=opset)
    written = {each.domain: each.version for each in onnx.load(tmp_path / "up.onnx").opset_import}
    assert (report.opset, written[""], report.parity.ok) == (opset, opset, True)


@needs_capture
def test_keyword_inputs_and_several_outputs(tmp_path):
    inputs = ((integers(1, 2, 5),), {"scale": integers(1, 3, 10)})
    report = export_onnx(seeded(Pair()), tmp_path / "up.onnx", inputs)
    names = [each.name for each in onnx.load(tmp_path / "up.onnx").graph.input]
    assert names == ["coarse", "scale"]
    assert len({each.what for each in report.parity.comparisons}) == 2


def test_names_can_be_chosen(tmp_path):
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    export_onnx(layer, tmp_path / "up.onnx", (x,), input_names=["low"], output_names=["high"])
    graph = onnx.load(tmp_path / "up.onnx").graph
    assert ([each.name for each in graph.input], [each.name for each in graph.output]) == (
        ["low"],
        ["high"],
    )


def test_weights_go_into_a_second_file_on_request(tmp_path, exported):
    model, image = exported[1], integers(1, 2, 4, 5)
    report = export_onnx(model, tmp_path / "net.onnx", (image,), external_data=True)
    [data] = tmp_path.glob("net.onnx.*.data")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", data.name]
    assert report.parity.ok
    assert np.array_equal(run(tmp_path / "net.onnx", image=image)[0], model(image).detach().numpy())


@needs_capture
def test_model_stays_as_it_was(tmp_path):
    model = seeded(Pair()).train()
    before = copy.deepcopy(model.state_dict())
    inputs = ((integers(1, 2, 5),), {"scale": integers(1, 3, 10)})
    export_onnx(model, tmp_path / "up.onnx", inputs, verify=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_verification_can_be_switched_off(tmp_path):
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    report = export_onnx(layer, tmp_path / "up.onnx", (x,), verify=False)
    assert (report.parity, report.shapes) == (None, ())


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.onnx", "absent/net.onnx", "."], ids=["file", "none", "dir"])
def test_unsuitable_output_is_refused_at_once(tmp_path, name):
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(OptionError):
        export_onnx(Branches(), tmp_path / name, (noise(1, 2, 5),))
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_existing_file_is_replaced_on_request(tmp_path):
    (tmp_path / "up.onnx").write_text("mine")
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    export_onnx(layer, tmp_path / "up.onnx", (x,), overwrite=True)
    onnx.checker.check_model(tmp_path / "up.onnx")


def test_weights_are_called_by_their_content(tmp_path):
    """No file of weights is ever replaced by another one, and a graph has those it was made with."""
    layer, x = seeded(nn.ConvTranspose1d(8, 6, 5, 2)), integers(2, 8, 5)
    path = tmp_path / "up.onnx"
    export_onnx(layer, path, (x,), external_data=True)
    [first] = tmp_path.glob("up.onnx.*.data")
    content = first.read_bytes()
    export_onnx(layer, path, (x,), external_data=True, overwrite=True)
    assert [*tmp_path.glob("up.onnx.*.data")] == [first]
    with torch.no_grad():
        layer.weight += 1
    export_onnx(layer, path, (x,), external_data=True, overwrite=True)
    assert len([*tmp_path.glob("up.onnx.*.data")]) == 2
    assert first.read_bytes() == content


def test_old_opset_is_refused(tmp_path):
    with pytest.raises(OptionError, match="opset: the value is 17; 18 or newer is needed"):
        export_onnx(seeded(Net()), tmp_path / "net.onnx", (integers(1, 2, 4, 5),), opset=17)


@needs_capture
def test_opset_of_the_future_is_refused(tmp_path):
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    with pytest.raises(ExportError, match="cannot write this model with opset 99"):
        export_onnx(layer, tmp_path / "up.onnx", (x,), opset=99)
    assert os.listdir(tmp_path) == []


@needs_capture
def test_model_that_torch_cannot_export_leaves_nothing(tmp_path):
    with pytest.raises(ExportError, match=r"Branches: torch\.onnx\.export fails"):
        export_onnx(Branches(), tmp_path / "up.onnx", (noise(1, 2, 5),))
    assert os.listdir(tmp_path) == []


def test_constant_outputs_are_no_evidence(tmp_path):
    layer, x = nn.ConvTranspose1d(2, 3, 3, 2).eval(), noise(2, 2, 5)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    with pytest.raises(ExportError, match="All outputs are constant, which is no evidence"):
        export_onnx(layer, tmp_path / "up.onnx", (x,))
    assert os.listdir(tmp_path) == []


def test_single_number_that_depends_on_the_input_is_evidence(tmp_path):
    x = noise(1, 2, 5, 6)
    torch.manual_seed(0)
    assert export_onnx(convert(MeanLevel(), x), tmp_path / "level.onnx", (x,)).parity.ok


def test_bfloat16_input_is_verified_or_refused_in_words(tmp_path):
    with contextlib.suppress(ExportError):
        export_onnx(Doubled(), tmp_path / "x.onnx", (noise(2, 3).bfloat16(),))
