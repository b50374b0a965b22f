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
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn

import deconvfix
import fixtures.models
from deconvfix import export_onnx
from deconvfix.errors import ExportError, OptionError
from deconvfix.files import sha256
from deconvfix.frontends.torch.export import OLDEST_OPSET, newest_opset
from deconvfix.frontends.torch.runtime_parity import verify_onnx

# The versions of the operators that each file names; 18 is what torch writes without conversion.
OPSETS = [18, 20]
FIXTURES = Path(fixtures.models.__file__).parent


class Net(nn.Module):
    """Weights and biases are small integers, so that float32 sums are exact in any order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(2, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1)

    def forward(self, image):
        return self.up(torch.relu(self.head(image)))


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


def seeded(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=generator))
    return model.eval()


def integers(*shape, seed=7):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def convert(model, *inputs, **options):
    return deconvfix.convert(model, example_inputs=inputs, **options).model


def operators(path):
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def run(path, **feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feed.items()})


@pytest.fixture(scope="module")
def original():
    return seeded(Net())


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    """A converted net with all its axes dynamic, written once for many tests; not to be changed."""
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    image = integers(2, 2, 5, 6)
    model = convert(original, image)
    report = export_onnx(
        model,
        path,
        (image,),
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        metadata={"author": "tests"},
    )
    return path, model, report


def rewritten(exported, tmp_path, change):
    """A copy of the exported file, changed by hand."""
    proto = onnx.load(exported[0])
    change(proto)
    onnx.save(proto, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


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


def test_newest_opset_is_the_default(exported):
    opsets = {each.domain: each.version for each in onnx.load(exported[0]).opset_import}
    assert opsets[""] == exported[2].opset == newest_opset() > OLDEST_OPSET


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
    assert (data["opset"], data["parity"]["ok"]) == (newest_opset(), True)


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


def test_resize_form_is_exported(tmp_path):
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(2, 3, 4, 2, 1).eval(), noise(1, 2, 5, 6)
    report = export_onnx(
        convert(layer, x, to="resize", interpolation="linear"), tmp_path / "up.onnx", (x,)
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
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    assert report.parity.ok
    assert np.array_equal(run(tmp_path / "net.onnx", image=image)[0], model(image).detach().numpy())


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


def test_existing_weights_file_is_kept(tmp_path):
    (tmp_path / "up.onnx.data").write_text("mine")
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    with pytest.raises(OptionError, match="the file exists"):
        export_onnx(layer, tmp_path / "up.onnx", (x,), external_data=True)


def test_old_opset_is_refused(tmp_path):
    with pytest.raises(OptionError, match="opset: the value is 17; 18 or newer is needed"):
        export_onnx(seeded(Net()), tmp_path / "net.onnx", (integers(1, 2, 4, 5),), opset=17)


def test_opset_of_the_future_is_refused(tmp_path):
    layer, x = seeded(nn.ConvTranspose1d(2, 3, 3, 2)), integers(2, 2, 5)
    with pytest.raises(ExportError, match="cannot write this model with opset 99"):
        export_onnx(layer, tmp_path / "up.onnx", (x,), opset=99)
    assert os.listdir(tmp_path) == []


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


# --- a check that can fail ----------------------------------------------------------------------


def test_exported_file_passes(exported):
    """The control of the tests below."""
    assert verify_onnx(exported[1], exported[0], (noise(1, 2, 4, 5),)).ok


def edit_weight(edit):
    def change(proto):
        nodes = [node for node in proto.graph.node if node.op_type == "Conv"]
        stored = {each.name: each for each in proto.graph.initializer}[nodes[-1].input[1]]
        weight = numpy_helper.to_array(stored).copy()
        edit(weight)
        stored.CopyFrom(numpy_helper.from_array(weight, stored.name))

    return change


def swap_phases(weight):
    weight[[0, 1]] = weight[[1, 0]]


def halve_precision(weight):
    # What rounding to float16, with its 11 bits, does to weights that are no integers.
    weight *= 1 + 2.0**-11 * np.random.default_rng(0).uniform(-1, 1, weight.shape)


def nudge(weight):
    weight[0, 0, 0, 0] += 0.25


def erase(weight):
    weight[...] = np.nan


@pytest.mark.parametrize("edit", [swap_phases, halve_precision, nudge, erase])
def test_tampered_weight_is_found(exported, tmp_path, edit):
    path = rewritten(exported, tmp_path, edit_weight(edit))
    assert not verify_onnx(exported[1], path, (integers(1, 2, 4, 5),)).ok


def test_other_weights_are_found(exported):
    other = convert(seeded(Net(), seed=1), integers(1, 2, 4, 5))
    assert not verify_onnx(other, exported[0], (noise(1, 2, 4, 5),)).ok


def rename_input(proto):
    proto.graph.input[0].name = "picture"
    for node in proto.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]


def test_unknown_input_name_is_refused(exported, tmp_path):
    path = rewritten(exported, tmp_path, rename_input)
    with pytest.raises(ExportError, match=r"\['picture'\]; the model's are called \['image'"):
        verify_onnx(exported[1], path, (noise(1, 2, 4, 5),))


def test_number_of_outputs_must_agree(exported, tmp_path):
    def change(proto):
        proto.graph.output.append(copy.deepcopy(proto.graph.input[0]))

    report = verify_onnx(exported[1], rewritten(exported, tmp_path, change), (noise(1, 2, 4, 5),))
    assert report.problems == ("The file has 2 outputs, the model 1 tensors.",)


def test_inputs_that_the_model_does_not_take_are_no_evidence(exported):
    with pytest.raises(deconvfix.ModelError, match="it cannot be run on inputs of shapes"):
        verify_onnx(exported[1], exported[0], (noise(1, 2, 4, 5), noise(1)))


def test_model_without_evidence_does_not_pass(exported, tmp_path):
    """Zeros are equal to zeros: that shows nothing about the weights."""

    def change(proto):
        for each in proto.graph.initializer:
            value = numpy_helper.to_array(each)
            if value.dtype == np.float32:
                each.CopyFrom(numpy_helper.from_array(np.zeros_like(value), each.name))

    model = copy.deepcopy(exported[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = verify_onnx(model, rewritten(exported, tmp_path, change), (noise(1, 2, 4, 5),))
    assert not report.ok
    assert "no evidence" in report.problems[0]


@pytest.mark.parametrize("content", [b"", b"hello" * 20], ids=["empty", "garbage"])
def test_damaged_file_is_refused(exported, tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="ONNX Runtime: it does not load the file"):
        verify_onnx(exported[1], tmp_path / "net.onnx", (noise(1, 2, 4, 5),))


def test_missing_file_is_refused(exported, tmp_path):
    with pytest.raises(ExportError):
        verify_onnx(exported[1], tmp_path / "absent.onnx", (noise(1, 2, 4, 5),))


def test_what_is_no_module_is_refused(tmp_path):
    state = nn.Conv1d(2, 3, 3).state_dict()
    with pytest.raises(deconvfix.ModelError, match="it is a OrderedDict"):
        export_onnx(state, tmp_path / "net.onnx", (noise(1, 2, 5),))


def test_exported_program_is_exported_as_its_module(tmp_path):
    layer = nn.ConvTranspose1d(2, 3, 4, 2).eval()
    program = deconvfix.convert(torch.export.export(layer, (noise(1, 2, 5),))).model
    report = export_onnx(program.module(), tmp_path / "net.onnx", (noise(1, 2, 5),))
    assert report.parity.ok
    assert "ConvTranspose" not in report.operators
