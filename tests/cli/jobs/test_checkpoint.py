"""Checkpoints converted: dtypes are kept, and what is written comes back as the model."""

import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

import deconvfix
from deconvfix.cli.jobs.job import Job, convert_file
from deconvfix.cli.source import Source
from deconvfix.frontends.torch import checkpoint
from deconvfix.plan import Plan
from deconvfix.request import Request
from tests.support.checkpoints import (
    ALL,
    Bilinear,
    Net,
    converted_file,
    example,
    same_bits,
    save,
    seeded,
)
from tests.support.forms import options_of


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = weight_norm(nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1))

    def forward(self, x):
        return self.up(x)


class OldNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = old_weight_norm(nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1))

    def forward(self, x):
        return self.up(x)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 3, 4, 4))

    def forward(self, x):
        return F.conv_transpose2d(x, self.kernel, stride=2, padding=1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.coarse = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False)
        self.fine = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False)
        self.fine.weight = self.coarse.weight

    def forward(self, x):
        return self.fine(self.coarse(x))


def convert_checkpoint(state, path, output, arch="Net", **options):
    """Converts a state dict as the command line does."""
    save(path, state)
    convert_file(Job(Source(path, f"{__name__}:{arch}", {}), output, Request(**options)))
    return checkpoint.read(output)


# --- dtypes -------------------------------------------------------------------------------------


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_file_keeps_its_dtype_bit_for_bit(tmp_path, dtype, suffix):
    state = seeded(Net).to(dtype).state_dict()
    found = convert_checkpoint(state, tmp_path / f"net{suffix}", tmp_path / f"out{suffix}")
    kept = [name for name in found.state if name in state]
    assert {"head.weight", "norm.running_var", "norm.num_batches_tracked"} <= set(kept)
    assert all(same_bits(found.state[name], state[name]) for name in kept)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_exact_form_only_moves_the_bits_of_a_weight(tmp_path, dtype):
    state = seeded(Net).to(dtype).state_dict()
    convert_checkpoint(state, tmp_path / "net.pt", tmp_path / "out.safetensors")
    model = deconvfix.load(tmp_path / "out.safetensors", seeded(Net, 9).to(dtype))
    assert same_bits(model.up1.weight, state["up1.weight"])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_new_names_get_the_dtype_of_the_file(tmp_path, dtype):
    state = seeded(Net).to(dtype).state_dict()
    found = convert_checkpoint(state, tmp_path / "net.pt", tmp_path / "out.pt")
    assert {found.state["up1.conv.weight"].dtype, found.state["up1.conv.bias"].dtype} == {dtype}


def test_mixed_dtypes_are_kept(tmp_path):
    state = seeded(Net).state_dict()
    state |= {name: value.half() for name, value in state.items() if name.startswith("up")}
    found = convert_checkpoint(state, tmp_path / "net.pt", tmp_path / "out.pt")
    assert found.state["up1.conv.weight"].dtype == torch.float16


def test_float64_values_survive(tmp_path):
    generator = torch.Generator().manual_seed(5)
    state = {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64)
        if value.is_floating_point()
        else value
        for name, value in seeded(Net).state_dict().items()
    }
    found = convert_checkpoint(state, tmp_path / "net.pt", tmp_path / "out.pt")
    assert same_bits(found.state["head.weight"], state["head.weight"])


# --- writing, and loading back ------------------------------------------------------------------


# The older weight_norm is deprecated by torch and still in most published vocoders.
OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

CASES = [
    pytest.param(Net, {"to": "subpixel"}, id="subpixel"),
    pytest.param(Net, options_of("resize"), id="resize nearest"),
    pytest.param(Net, {**options_of("resize"), "interpolation": "linear"}, id="resize linear"),
    pytest.param(Net, {**options_of("resize"), "padding_mode": "replicate"}, id="resize replicate"),
    pytest.param(Net, {"to": "resize", "init": "random", "seed": 4}, id="resize random"),
    pytest.param(Bilinear, {"to": "resize"}, id="resize exact"),
    pytest.param(Net, options_of("equalized"), id="equalized"),
    pytest.param(Net, {"to": "subpixel", "include": "up1"}, id="one layer only"),
    pytest.param(Normed, {"to": "subpixel"}, id="weight_norm subpixel"),
    pytest.param(Normed, options_of("resize"), id="weight_norm resize"),
    pytest.param(Normed, options_of("equalized"), id="weight_norm equalized"),
    pytest.param(OldNormed, {"to": "subpixel"}, id="old weight_norm", marks=OLD),
    pytest.param(Functional, {"to": "subpixel", "example_inputs": (example(),)}, id="functional"),
    pytest.param(
        Functional,
        {"to": "subpixel"},
        id="functional unseen",
    ),
    pytest.param(Tied, {"to": "subpixel"}, id="tied"),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("build", "options"), CASES)
def test_loaded_model_computes_what_the_converted_one_computes(tmp_path, suffix, build, options):
    path = tmp_path / f"net{suffix}"
    conversion = converted_file(path, seeded(build), **options)
    loaded = deconvfix.load(path, seeded(build, seed=1))
    # The same operations on the same bits, so equality is the right test.
    assert torch.equal(loaded(example()), conversion.model(example()))


@pytest.mark.parametrize(
    ("build", "options"), [each for each in CASES if each.values[0] is not Bilinear]
)
def test_outputs_depend_on_the_weights(build, options):
    """The control of the test before; the weights of `Bilinear` do not depend on the seed."""
    conversion = deconvfix.convert(seeded(build), **options)
    other = deconvfix.convert(seeded(build, seed=1), plan=conversion.plan, verify=False)
    assert not torch.equal(other.model(example()), conversion.model(example()))


@pytest.mark.parametrize("suffix", ALL)
def test_recipe_comes_back(tmp_path, suffix):
    conversion = converted_file(tmp_path / f"net{suffix}", seeded(Net), to="resize", init="fit")
    assert checkpoint.read(tmp_path / f"net{suffix}").recipe == conversion.plan


@pytest.mark.parametrize("to", ["subpixel", "resize", "equalized"])
def test_recipe_survives_json(to):
    plan = deconvfix.convert(seeded(Net), **options_of(to), exclude="up2").plan
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("suffix", ALL)
def test_weights_and_recipe_are_one_file(tmp_path, suffix):
    """So that no interruption leaves the weights of one conversion with the recipe of another."""
    converted_file(tmp_path / f"net{suffix}", seeded(Net))
    assert os.listdir(tmp_path) == [f"net{suffix}"]


def test_recipe_in_a_file_beside_the_checkpoint_is_still_read(tmp_path):
    """That is where earlier versions wrote it."""
    conversion = converted_file(tmp_path / "net.pt", seeded(Net))
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    save(tmp_path / "old.pt", content)
    assert checkpoint.read(tmp_path / "old.pt").recipe is None
    (tmp_path / "old.pt.recipe.json").write_text(conversion.plan.to_json())
    assert checkpoint.read(tmp_path / "old.pt").recipe == conversion.plan


def test_recipe_in_the_file_goes_before_one_beside_it(tmp_path):
    conversion = converted_file(tmp_path / "net.pt", seeded(Net))
    (tmp_path / "net.pt.recipe.json").write_text("of another file")
    assert checkpoint.read(tmp_path / "net.pt").recipe == conversion.plan


@pytest.mark.parametrize("key", ["params_ema", "a.state_dict"])
def test_output_is_nested_as_the_source_was(tmp_path, key):
    content = seeded(Net).state_dict()
    for part in reversed(key.split(".")):
        content = {part: content, "optimizer": {}}
    found = convert_checkpoint(content, tmp_path / "net.pt", tmp_path / "out.pt")
    assert found.state_key == key


def test_a_new_architecture_leaves_the_optimizer_out(tmp_path):
    """Its state belongs to parameters that are not there any more."""
    content = {"model": seeded(Net).state_dict(), "optimizer": {"lr": 0.1}}
    found = convert_checkpoint(content, tmp_path / "net.pt", tmp_path / "out.pt")
    assert found.left_out == ()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_equalized_output_is_the_input_but_for_the_weights(tmp_path, prefix, suffix):
    """The user's own line loads it: names, other entries and their order are those of the original."""
    state = {prefix + name: value for name, value in seeded(Net).state_dict().items()}
    state["loss.scale"] = torch.tensor(3.0)  # a part of the training that is not in the model
    content = {"epoch": 7, "state_dict": state, "optimizer_states": [{"lr": 0.1}]}
    convert_checkpoint(
        content, tmp_path / f"net{suffix}", tmp_path / f"out{suffix}", to="equalized", init="fit"
    )
    written = torch.load(tmp_path / f"out{suffix}", weights_only=True)
    assert [*written] == [*content]
    assert [*written["state_dict"]] == [*state]
    assert (written["epoch"], written["optimizer_states"]) == (7, [{"lr": 0.1}])
    changed = [name for name in state if not torch.equal(state[name], written["state_dict"][name])]
    assert changed == [f"{prefix}up1.weight", f"{prefix}up2.weight"]


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_a_new_architecture_keeps_the_prefix(tmp_path, prefix):
    content = {prefix + name: value for name, value in seeded(Net).state_dict().items()}
    convert_checkpoint(content, tmp_path / "net.pt", tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(name.startswith(prefix) for name in written)
    loaded = deconvfix.load(tmp_path / "out.pt", seeded(Net, seed=1))
    assert torch.equal(loaded(example()), deconvfix.convert(seeded(Net)).model(example()))


def test_metadata_of_safetensors_are_kept(tmp_path):
    save_file(seeded(Net).state_dict(), tmp_path / "net.safetensors", {"license": "mine"})
    job = Job(
        Source(tmp_path / "net.safetensors", f"{__name__}:Net"),
        tmp_path / "o.safetensors",
        Request(),
    )
    convert_file(job)
    assert checkpoint.read(tmp_path / "o.safetensors").metadata["license"] == "mine"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tied_parameters_are_written_and_stay_tied(tmp_path, suffix):
    converted_file(tmp_path / f"net{suffix}", seeded(Tied))
    loaded = deconvfix.load(tmp_path / f"net{suffix}", seeded(Tied, seed=1))
    assert loaded.coarse.weight.data_ptr() == loaded.fine.weight.data_ptr()


def test_equalized_checkpoint_fits_the_unchanged_code(tmp_path):
    conversion = converted_file(tmp_path / "net.pt", seeded(Net), to="equalized", init="fit")
    model = seeded(Net, seed=1)
    model.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(model(example()), conversion.model(example()))


def test_loading_leaves_the_given_model_alone(tmp_path):
    converted_file(tmp_path / "net.pt", seeded(Net))
    model = seeded(Net, seed=1)
    before = model(example())
    deconvfix.load(tmp_path / "net.pt", model)
    assert type(model.up1) is nn.ConvTranspose2d
    assert torch.equal(model(example()), before)


def test_loading_in_place_changes_the_given_model(tmp_path):
    converted_file(tmp_path / "net.pt", seeded(Net))
    model = seeded(Net, seed=1)
    assert deconvfix.load(tmp_path / "net.pt", model, inplace=True) is model
    assert type(model.up1) is not nn.ConvTranspose2d


def test_checkpoint_without_recipe_is_loaded_as_it_is(tmp_path):
    original = seeded(Net)
    save(tmp_path / "net.safetensors", original.state_dict())
    loaded = deconvfix.load(tmp_path / "net.safetensors", seeded(Net, seed=1))
    assert torch.equal(loaded(example()), original(example()))


def test_loaded_model_can_be_trained(tmp_path):
    converted_file(tmp_path / "net.pt", seeded(Net), to="resize", init="fit")
    loaded = deconvfix.load(tmp_path / "net.pt", seeded(Net, seed=1))
    loaded(example()).square().sum().backward()
    assert all(bool(each.grad.abs().sum() > 0) for each in loaded.up1.parameters())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_converted_checkpoint_can_be_converted_further(tmp_path, suffix):
    arch = f"{__name__}:Net"
    save(tmp_path / "net.pt", seeded(Net).state_dict())
    first, second = tmp_path / "one.pt", tmp_path / f"two{suffix}"
    convert_file(Job(Source(tmp_path / "net.pt", arch, {}), first, Request(include=("up1",))))
    convert_file(Job(Source(first, arch, {}), second, Request()))
    assert not [
        module
        for module in deconvfix.load(tmp_path / f"two{suffix}", seeded(Net)).modules()
        if isinstance(module, nn.ConvTranspose2d)
    ]
