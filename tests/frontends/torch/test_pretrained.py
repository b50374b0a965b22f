"""Models of other libraries by name: fakes for the rules, the libraries themselves where they are."""

import importlib.util
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deconvfix
from deconvfix.errors import CheckpointError, MissingPackageError, OptionError
from deconvfix.fixing.fix import Fix
from deconvfix.fixing.report import FixReport, GridChange, Measured
from deconvfix.frontends.torch.pretrained import build, class_of, loaded, weight_files
from deconvfix.plan import Plan
from tests.support.command import assert_fails_in_words, run


class Up(nn.Module):
    """As a class of transformers, as far as deconvfix asks: a configuration, and a way to read a folder."""

    class config_class:
        def __init__(self, width):
            self.width = width

        @classmethod
        def from_dict(cls, given):
            return cls(given["width"])

    def __init__(self, config):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, config.width, 4, stride=2, padding=1)

    def forward(self, x):
        return torch.tanh(self.up(x))

    @classmethod
    def from_pretrained(cls, folder, *, local_files_only, use_safetensors):
        assert local_files_only
        assert use_safetensors
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            model = cls(cls.config_class.from_dict(json.load(file)))
        model.load_state_dict(
            {
                name: value
                for path in weight_files_of(folder)
                for name, value in load_file(path).items()
            }
        )
        return model


def weight_files_of(folder):
    return [str(path) for path in sorted(Path(folder).glob("*.safetensors"))]


@pytest.fixture
def library(monkeypatch):
    """Packages with the names of the libraries, and nothing of the network in them."""
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(Up=Up, NotAModel=dict))
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace())


@pytest.fixture
def folder(tmp_path):
    """A folder with one file of weights."""
    path = tmp_path / "net"
    path.mkdir()
    torch.manual_seed(0)
    (path / "config.json").write_text(json.dumps({"architectures": ["Up"], "width": 3}))
    save_file(Up(Up.config_class(3)).state_dict(), path / "model.safetensors")
    return path


def cut(folder):
    """The same weights in two files with an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {
        "up.weight": "model-00001-of-00002.safetensors",
        "up.bias": "model-00002-of-00002.safetensors",
    }
    for name, part in names.items():
        save_file({name: state[name]}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


NAMED = ("--arch", "hf:Up", "--input", "x=1x2x5x6")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_is_converted_into_a_folder_that_loads_alone(library, folder, sharded):
    original = deconvfix.load(folder)
    if sharded:
        cut(folder)
    output = folder.parent / "net-1.5"
    result = run("convert", folder, *NAMED, "-o", output)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    assert (output / "config.json").read_text() == (folder / "config.json").read_text()
    converted = deconvfix.load(output)
    assert not any(type(part) is nn.ConvTranspose2d for part in converted.modules())
    x = torch.randn(2, 2, 5, 6)
    with torch.no_grad():
        assert torch.allclose(original(x), converted(x), rtol=0, atol=1e-5)
        assert not torch.allclose(original(x), original(x + 1), rtol=0, atol=1e-2)
    assert run("verify", folder, output, *NAMED).exit_code == 0
    assert run("inspect", folder, *NAMED).exit_code == 0


def test_a_folder_is_never_converted_onto_itself(library, folder):
    before = (folder / "model.safetensors").read_bytes()
    assert_fails_in_words(
        run("convert", folder, *NAMED, "-o", folder, "--force"), "model.safetensors"
    )
    assert (folder / "model.safetensors").read_bytes() == before


def test_nothing_is_left_where_a_conversion_fails(library, folder):
    output = folder.parent / "out"
    assert run("convert", folder, *NAMED, "-o", output, "--include", "nothing").exit_code == 1
    assert not output.exists()


def test_fix_writes_a_folder_too(library, folder, monkeypatch):
    """With what it found; here the same weights, as if they had been trained."""

    def found(model, **_):
        measured = Measured(1.0, 1.0, 30.0, None, 0.0)
        change = GridChange(1.0, 1.0, 0.0, 0.0)
        report = FixReport(
            fixed=True, reason="Fixed: nothing.", nothing_to_fix=False, grid=change, match_db=30.0,
            colour_shift=0.0, cost=1.0, original=measured, candidates=(), heldout=2, goal="none",
        )  # fmt: skip
        return Fix(model, Plan("keep", ()), report)

    monkeypatch.setattr("deconvfix.cli.jobs.fix.fix", found)
    out = folder.parent / "fixed"
    done = run(
        "fix", folder, "--arch", "hf:Up", "--input", "x=8x2x4x4", "--data", "normal", "-o", out
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    before = load_file(folder / "model.safetensors")
    model = deconvfix.load(out)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_folder_without_torch_is_a_sentence(library, folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "deconvfix.frontends.torch.checkpoint")
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("convert", folder, "--arch", "hf:Up", "-o", folder.parent / "out")
    assert_fails_in_words(done, "the package torch is not installed", "deconvfix[torch]")


def test_a_pickle_is_not_read(library, folder):
    shutil.move(folder / "model.safetensors", folder.parent)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="no pickle is read"):
        loaded("hf:Up", {}, folder)
    assert_fails_in_words(run("inspect", folder, *NAMED), "no pickle is read")


@pytest.mark.parametrize(
    "part",
    [
        "../outside.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "x.bin",
        3,
        "gone.safetensors",
    ],
)
def test_an_index_leads_nowhere_else(folder, part):
    index = cut(folder)
    index.write_text(json.dumps({"weight_map": {"up.weight": part}}))
    with pytest.raises(CheckpointError, match=r"names of \.safetensors files beside it are needed"):
        weight_files(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
        ('{"architectures": ["A", "B"]}', "one class"),
        ("{}", "one class"),
        ('{"_class_name": 3}', "one class"),
    ],
)
def test_a_configuration_names_one_class(folder, config, words):
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=words):
        class_of(folder)


def test_both_libraries_name_their_class(folder):
    assert class_of(folder) == "hf:Up"
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL", "architectures": ["No"]}')
    assert class_of(folder) == "hf:AutoencoderKL"


@pytest.mark.parametrize("name", ["Nothing", "NotAModel", "__loader__", ""])
def test_only_a_librarys_models_are_built(library, folder, name):
    with pytest.raises(OptionError, match="no model of transformers and diffusers has this name"):
        build(f"hf:{name}", {}, folder)


@pytest.mark.parametrize("arch", ["timm:resnet18", "monai:UNet", "hf:Up"])
def test_what_is_not_installed_is_said(monkeypatch, folder, arch):
    monkeypatch.delitem(sys.modules, "monai.networks.nets", raising=False)
    for name in ("timm", "monai", "transformers", "diffusers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="pip install"):
        build(arch, {}, folder)


def test_a_package_that_does_not_fit_to_torch_is_said(monkeypatch, tmp_path):
    """As torchvision for CUDA beside a torch for CPUs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (tmp_path / "timm.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
    with pytest.raises(MissingPackageError, match=r"nms does not exist.*of the same build"):
        build("timm:resnet18", {}, tmp_path)


def test_builders_of_timm_and_monai_get_the_arguments(monkeypatch, tmp_path):
    asked = []
    timm = SimpleNamespace(
        create_model=lambda name, **given: asked.append((name, given)) or Up(Up.config_class(5))
    )
    nets = SimpleNamespace(Own=lambda width: Up(Up.config_class(width)))
    for name, module in (
        ("timm", timm),
        ("monai", nets),
        ("monai.networks", nets),
        ("monai.networks.nets", nets),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    save_file(Up(Up.config_class(5)).state_dict(), tmp_path / "net.safetensors")
    for arch, arguments in (("timm:own", '{"drop": 1}'), ("monai:Own", '{"width": 5}')):
        named = ("--arch", arch, "--arch-kwargs", arguments, "--input", "x=1x2x5x6")
        result = run(
            "convert", tmp_path / "net.safetensors", *named, "-o", tmp_path / "out.pt", "--force"
        )
        assert result.exit_code == 0, result.output
        assert "1 replaced; verified." in result.stdout
    assert set(asked[0][1]) == {"pretrained", "drop"}
    assert {given["pretrained"] for _, given in asked} == {False}
    with pytest.raises(OptionError, match="no model of"):
        build("monai:Nothing", {}, tmp_path)


installed = {
    name: importlib.util.find_spec(name) is not None
    for name in ("diffusers", "transformers", "monai", "timm", "torchvision")
}
# torchvision of another build than torch is installed, and does not import.
if installed["torchvision"]:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        installed["torchvision"] = False
# What the libraries say of themselves is no concern of these tests.
quiet = pytest.mark.filterwarnings("ignore")


def assert_converts(folder, arch, inputs):
    output = folder.parent / "converted"
    result = run("convert", folder, "--arch", arch, "--input", inputs, "-o", output)
    assert result.exit_code == 0, result.output
    assert "2 replaced; verified." in result.stdout
    assert type(deconvfix.load(output)).__name__ == arch.partition(":")[2]


@quiet
@pytest.mark.skipif(not installed["diffusers"], reason="diffusers is not installed")
@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_a_model_of_diffusers(tmp_path, size):
    from diffusers import AutoencoderOobleck

    model = AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=1,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "net", max_shard_size=size)
    assert (len(weight_files(tmp_path / "net")) > 1) is (size == "20KB")
    assert_converts(tmp_path / "net", "hf:AutoencoderOobleck", "sample=1x1x64")


@quiet
@pytest.mark.skipif(not installed["transformers"], reason="transformers is not installed")
@pytest.mark.parametrize("size", ["10GB", "10KB"])
def test_a_model_of_transformers(tmp_path, size):
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=6, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    SpeechT5HifiGan(config).save_pretrained(tmp_path / "net", max_shard_size=size)
    assert (len(weight_files(tmp_path / "net")) > 1) is (size == "10KB")
    assert_converts(tmp_path / "net", "hf:SpeechT5HifiGan", "spectrogram=1x8x6")


@quiet
@pytest.mark.skipif(not installed["monai"], reason="monai is not installed")
def test_a_model_of_monai(tmp_path):
    arguments = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8, 8],
        "strides": [2, 2],
    }
    save_file(build("monai:UNet", arguments, tmp_path).state_dict(), tmp_path / "net.safetensors")
    named = (
        "--arch",
        "monai:UNet",
        "--arch-kwargs",
        json.dumps(arguments),
        "--input",
        "x=1x1x16x24",
    )
    result = run("convert", tmp_path / "net.safetensors", *named, "-o", tmp_path / "out.pt")
    assert result.exit_code == 0, result.output
    assert "2 replaced; verified." in result.stdout


@quiet
@pytest.mark.skipif(
    not (installed["timm"] and installed["torchvision"]),
    reason="timm, or a torchvision for this torch, is not installed",
)
def test_a_model_of_timm_without_transposed_convolutions(tmp_path):
    model = build("timm:test_efficientnet", {"num_classes": 3}, tmp_path)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    named = ("--arch", "timm:test_efficientnet", "--arch-kwargs", '{"num_classes": 3}')
    result = run("inspect", tmp_path / "net.safetensors", *named)
    assert result.exit_code == 0, result.output
    assert "No transposed convolution found." in result.stdout
