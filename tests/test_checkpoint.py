"""Checkpoints are read as data, written with their recipe, and come back as the converted model."""

import copy
import json
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

import deconvfix
from deconvfix.cli.jobs.checkpoint import convert_file
from deconvfix.cli.source import Source
from deconvfix.errors import CheckpointError, DeconvfixError, ModelError
from deconvfix.frontends.torch import checkpoint
from deconvfix.plan import Plan

PICKLED = [".pt", ".pth", ".ckpt"]
ALL = [".safetensors", *PICKLED]


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.head = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.up1 = nn.ConvTranspose2d(width, 5, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        return self.up2(torch.relu(self.up1(self.norm(self.head(x)))))


class Bilinear(nn.Module):
    """A depthwise layer whose kernel divides, so that its resize form is exact."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, groups=2, bias=False)
        tent = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        with torch.no_grad():
            self.up.weight.copy_(torch.outer(tent, tent))

    def forward(self, x):
        return self.up(x)


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


class Runs:
    """A pickle of this runs a shell command when it is read by an unguarded unpickler."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def seeded(build, seed=0):
    torch.manual_seed(seed)
    model = build()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def example():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 2, 5, 6, generator=generator)


def save(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def convert_checkpoint(state, path, output, arch="Net"):
    """Converts a state dict as the command line does."""
    save(path, state)
    convert_file(Source(path, f"{__name__}:{arch}", {}), output)
    return checkpoint.read(output)


def converted_file(path, model, **options):
    conversion = deconvfix.convert(model, **options)
    checkpoint.write(path, conversion.model, conversion.plan)
    return conversion


def with_recipe(path, state, recipe):
    metadata = {checkpoint.RECIPE_KEY: recipe if isinstance(recipe, str) else json.dumps(recipe)}
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=metadata)
    return path


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ALL)
def test_bare_state_dict_is_read(tmp_path, suffix):
    state = seeded(Net).state_dict()
    found = checkpoint.read(save(tmp_path / f"net{suffix}", state))
    assert found.state.keys() == state.keys()
    assert all(same_bits(found.state[name], value) for name, value in state.items())


def test_bare_state_dict_has_no_key_and_leaves_nothing_out(tmp_path):
    found = checkpoint.read(save(tmp_path / "net.pt", seeded(Net).state_dict()))
    assert (found.state_key, found.left_out, found.recipe) == ("", (), None)


@pytest.mark.parametrize("key", ["state_dict", "model", "params_ema", "generator", "anything"])
def test_nested_state_dict_is_found(tmp_path, key):
    state = seeded(Net).state_dict()
    found = checkpoint.read(save(tmp_path / "net.pth", {"epoch": 3, key: state}))
    assert (found.state_key, found.state.keys()) == (key, state.keys())


def test_averaged_weights_come_first(tmp_path):
    trained, averaged = seeded(Net, 1).state_dict(), seeded(Net, 2).state_dict()
    found = checkpoint.read(save(tmp_path / "n.pt", {"params": trained, "params_ema": averaged}))
    assert torch.equal(found.state["up1.weight"], averaged["up1.weight"])


def test_deeply_nested_state_dict_is_found(tmp_path):
    found = checkpoint.read(
        save(tmp_path / "n.pt", {"checkpoint": {"state_dict": seeded(Net).state_dict()}})
    )
    assert found.state_key == "checkpoint.state_dict"


def test_what_is_left_out_is_named(tmp_path):
    model = seeded(Net)
    optimizer = torch.optim.Adam(model.parameters())
    model(example()).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    found = checkpoint.read(save(tmp_path / "net.ckpt", content))
    assert found.left_out == ("optimizer", "epoch")


@pytest.mark.parametrize("key", ["discriminator", "generator", "nested.critic"])
def test_state_key_chooses(tmp_path, key):
    states = {name: seeded(Net, seed).state_dict() for seed, name in enumerate("abc")}
    content = {
        "generator": states["a"],
        "discriminator": states["b"],
        "nested": {"critic": states["c"]},
    }
    wanted = {"generator": "a", "discriminator": "b", "nested.critic": "c"}[key]
    found = checkpoint.read(save(tmp_path / "gan.pt", content), state_key=key)
    assert torch.equal(found.state["up1.weight"], states[wanted]["up1.weight"])


def test_wrong_state_key_is_told_the_choices(tmp_path):
    state = seeded(Net).state_dict()
    path = save(tmp_path / "gan.pt", {"a": state, "b": {"c": state}})
    with pytest.raises(CheckpointError, match=r"no state dict under 'd'.*Choose from: a, b\.c"):
        checkpoint.read(path, state_key="d")


def test_ambiguous_file_needs_a_state_key(tmp_path):
    state = seeded(Net).state_dict()
    path = save(tmp_path / "gan.pt", {"a": state, "b": state})
    with pytest.raises(CheckpointError, match=r"2 dicts of tensors \(a, b\).*--state-key"):
        checkpoint.read(path)


def test_file_without_tensors_is_refused(tmp_path):
    path = save(tmp_path / "log.pt", {"epoch": 3, "losses": [0.5, 0.25]})
    with pytest.raises(CheckpointError, match="0 dicts of tensors"):
        checkpoint.read(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", PICKLED)
def test_code_in_a_pickle_is_not_executed(tmp_path, suffix, legacy):
    marker, path = tmp_path / "marker", tmp_path / f"net{suffix}"
    content = {"state_dict": seeded(Net).state_dict(), "hyper": Runs(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="nothing else is executed"):
        checkpoint.read(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", ALL)
def test_bare_pickle_is_not_executed(tmp_path, suffix):
    marker, path = tmp_path / "marker", tmp_path / f"net{suffix}"
    path.write_bytes(pickle.dumps(Runs(marker)))
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    assert not marker.exists()


def test_the_pickle_above_would_run():
    """The control of the two tests before: an ordinary unpickler does run the command."""
    assert pickle.loads(pickle.dumps(Runs("/dev/null"))) == 0


def test_whole_module_is_refused(tmp_path):
    torch.save(seeded(Net), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"Save the model's state_dict\(\) alone"):
        checkpoint.read(tmp_path / "net.pt")


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
@pytest.mark.parametrize("suffix", ALL)
def test_damaged_file_is_refused(tmp_path, suffix, damage):
    path = save(tmp_path / f"net{suffix}", seeded(Net).state_dict())
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"hello" * 20, "truncated": whole[:-600]}[damage])
    with pytest.raises(CheckpointError, match=f"net{suffix}: it cannot be read"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "name", ["absent.pt", "absent.safetensors", ""], ids=["pt", "st", "folder"]
)
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match="there is no such file"):
        checkpoint.read(tmp_path / name)


def test_pipe_is_no_checkpoint(tmp_path):
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="there is no such file"):
        checkpoint.read(tmp_path / "net.pt")


def test_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "net.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the suffix is '\.h5'; one of \.safetensors, \.pt"):
        checkpoint.read(tmp_path / "net.h5")


# --- into a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model.generator."])
def test_common_prefix_is_taken_off(tmp_path, prefix):
    state = seeded(Net, 1).state_dict()
    path = save(tmp_path / "net.pt", {prefix + name: value for name, value in state.items()})
    model = seeded(Net, 2)
    assert checkpoint.load_state(model, checkpoint.read(path)) == ()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_other_networks_in_the_same_dict_are_named(tmp_path):
    state = seeded(Net).state_dict()
    content = {f"generator.{name}": value for name, value in state.items()}
    content["discriminator.head.weight"] = torch.zeros(1)
    unused = checkpoint.load_state(seeded(Net), checkpoint.read(save(tmp_path / "g.pt", content)))
    assert unused == ("discriminator.head.weight",)


def test_missing_entries_are_counted_and_named(tmp_path):
    state = seeded(Net).state_dict()
    del state["head.bias"], state["up2.weight"]
    found = checkpoint.read(save(tmp_path / "net.pt", state))
    with pytest.raises(
        CheckpointError,
        match=r"2 entries are missing \(head\.bias, up2\.weight\); the state dict of Net is needed",
    ):
        checkpoint.load_state(seeded(Net), found)


def test_wrong_shapes_are_told_with_both_shapes(tmp_path):
    state = seeded(Net).state_dict()
    state["up1.bias"] = torch.zeros(7)
    found = checkpoint.read(save(tmp_path / "net.pt", state))
    with pytest.raises(
        CheckpointError, match=r"1 have other shapes \(up1\.bias is \(7,\) instead of \(5,\)\)"
    ):
        checkpoint.load_state(seeded(Net), found)


def test_failed_loading_leaves_the_model_as_it_was(tmp_path):
    state = seeded(Net, 1).state_dict()
    state["up2.bias"] = torch.zeros(7)
    found = checkpoint.read(save(tmp_path / "net.pt", state))
    model = seeded(Net, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError):
        checkpoint.load_state(model, found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lazy_layer_without_shape_is_an_error_in_words(tmp_path):
    path = save(tmp_path / "up.pt", nn.ConvTranspose2d(2, 3, 4).state_dict())
    with pytest.raises(DeconvfixError):
        deconvfix.load(path, nn.LazyConvTranspose2d(3, 4))


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
    pytest.param(Net, {"to": "resize"}, id="resize nearest"),
    pytest.param(Net, {"to": "resize", "interpolation": "linear"}, id="resize linear"),
    pytest.param(Net, {"to": "resize", "padding_mode": "replicate"}, id="resize replicate"),
    pytest.param(Net, {"to": "resize", "init": "random", "seed": 4}, id="resize random"),
    pytest.param(Bilinear, {"to": "resize"}, id="resize exact"),
    pytest.param(Net, {"to": "equalized"}, id="equalized"),
    pytest.param(Net, {"to": "subpixel", "include": "up1"}, id="one layer only"),
    pytest.param(Normed, {"to": "subpixel"}, id="weight_norm subpixel"),
    pytest.param(Normed, {"to": "resize"}, id="weight_norm resize"),
    pytest.param(Normed, {"to": "equalized"}, id="weight_norm equalized"),
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
    conversion = converted_file(tmp_path / f"net{suffix}", seeded(Net), to="resize")
    assert checkpoint.read(tmp_path / f"net{suffix}").recipe == conversion.plan


@pytest.mark.parametrize("to", ["subpixel", "resize", "equalized"])
def test_recipe_survives_json(to):
    plan = deconvfix.convert(seeded(Net), to=to, exclude="up2").plan
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("suffix", PICKLED)
def test_recipe_lies_beside_a_pickled_checkpoint(tmp_path, suffix):
    converted_file(tmp_path / f"net{suffix}", seeded(Net))
    assert (tmp_path / f"net{suffix}.recipe.json").is_file()


def test_safetensors_needs_no_second_file(tmp_path):
    converted_file(tmp_path / "net.safetensors", seeded(Net))
    assert os.listdir(tmp_path) == ["net.safetensors"]


@pytest.mark.parametrize("key", ["params_ema", "a.state_dict"])
def test_output_is_nested_as_the_source_was(tmp_path, key):
    content = seeded(Net).state_dict()
    for part in reversed(key.split(".")):
        content = {part: content, "optimizer": {}}
    found = convert_checkpoint(content, tmp_path / "net.pt", tmp_path / "out.pt")
    assert found.state_key == key


def test_output_leaves_the_optimizer_out(tmp_path):
    content = {"model": seeded(Net).state_dict(), "optimizer": {"lr": 0.1}}
    found = convert_checkpoint(content, tmp_path / "net.pt", tmp_path / "out.pt")
    assert found.left_out == ()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tied_parameters_are_written_and_stay_tied(tmp_path, suffix):
    converted_file(tmp_path / f"net{suffix}", seeded(Tied))
    loaded = deconvfix.load(tmp_path / f"net{suffix}", seeded(Tied, seed=1))
    assert loaded.coarse.weight.data_ptr() == loaded.fine.weight.data_ptr()


def test_equalized_checkpoint_fits_the_unchanged_code(tmp_path):
    conversion = converted_file(tmp_path / "net.pt", seeded(Net), to="equalized")
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
    converted_file(tmp_path / "net.pt", seeded(Net), to="resize")
    loaded = deconvfix.load(tmp_path / "net.pt", seeded(Net, seed=1))
    loaded(example()).square().sum().backward()
    assert all(bool(each.grad.abs().sum() > 0) for each in loaded.up1.parameters())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_converted_checkpoint_can_be_converted_further(tmp_path, suffix):
    arch = f"{__name__}:Net"
    save(tmp_path / "net.pt", seeded(Net).state_dict())
    convert_file(Source(tmp_path / "net.pt", arch, {}), tmp_path / "one.pt", include=("up1",))
    convert_file(Source(tmp_path / "one.pt", arch, {}), tmp_path / f"two{suffix}")
    assert not [
        module
        for module in deconvfix.load(tmp_path / f"two{suffix}", seeded(Net)).modules()
        if isinstance(module, nn.ConvTranspose2d)
    ]


def test_recipe_file_of_the_user_is_kept(tmp_path):
    (tmp_path / "out.pt.recipe.json").write_text("mine")
    with pytest.raises(DeconvfixError, match="the file exists"):
        convert_checkpoint(seeded(Net).state_dict(), tmp_path / "net.pt", tmp_path / "out.pt")


# --- recipes that are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"format": "deconvfix.recipe/9"}',
        '{"format": "deconvfix.recipe/1", "to": "subpixel"}',
        '{"format": "deconvfix.recipe/1", "to": "subpixel", "decisions": [{"name": "up1"}]}',
        '{"format": "deconvfix.recipe/1", "to": "subpixel", "decisions": [3]}',
    ],
    ids=["cut off", "list", "null", "format", "no decisions", "half a decision", "number"],
)
def test_text_that_is_no_recipe_is_refused(text):
    with pytest.raises(CheckpointError, match="recipe: it cannot be read"):
        Plan.from_json(text)


def test_endless_recipe_is_refused():
    with pytest.raises(CheckpointError):
        Plan.from_json("[" * 100_000)


def test_binary_recipe_beside_a_checkpoint_is_refused(tmp_path):
    save(tmp_path / "net.pt", seeded(Net).state_dict())
    (tmp_path / "net.pt.recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "net.pt")


def tampered(path, change, to):
    """A converted checkpoint whose recipe's first decision was changed by hand."""
    conversion = deconvfix.convert(seeded(Net), to=to)
    recipe = json.loads(conversion.plan.to_json())
    decision = recipe["decisions"][0]
    for key, value in change.items():
        if isinstance(value, dict):
            decision[key].update(value)
        else:
            decision[key] = value
    return with_recipe(path, conversion.model.state_dict(), recipe)


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        pytest.param(
            {"spec": {"kernel_size": [3, 3]}}, "subpixel", "plan was made for", id="kernel"
        ),
        pytest.param({"spec": {"stride": [3, 2]}}, "resize", "plan was made for", id="stride"),
        pytest.param({"spec": None}, "subpixel", "plan was made for None", id="no spec"),
        pytest.param({"spec": {"groups": -1}}, "subpixel", "groups", id="impossible spec"),
        pytest.param({"spec": {"padding": "ab"}}, "subpixel", "cannot be read", id="padding"),
        pytest.param({"name": "up9"}, "subpixel", "no such layer", id="name"),
        pytest.param({"form": "magic"}, "subpixel", "'magic'", id="form"),
        pytest.param({"form": None}, "subpixel", "lacks a form", id="no form"),
        pytest.param({"decision": "perhaps"}, "subpixel", "'perhaps'", id="decision"),
        pytest.param({"extra": 1}, "subpixel", "cannot be read", id="unknown entry"),
        pytest.param({"form": "resize"}, "subpixel", "other shapes", id="another form"),
        pytest.param({"settings": {"interpolation": "cubic"}}, "resize", "cubic", id="cubic"),
        pytest.param({"settings": {"padding_mode": "wrap"}}, "resize", "wrap", id="wrap"),
        pytest.param({"settings": {"init": "luck"}}, "resize", "luck", id="init"),
        pytest.param({"settings": {"init": "random", "seed": "x"}}, "resize", "x", id="seed"),
        pytest.param(
            {"name": 5},
            "subpixel",
            "cannot be read",
            id="name is a number",
        ),
        pytest.param(
            {"spec": {"kernel_size": [3, 3]}},
            "equalized",
            "plan was made for",
            id="equalized kernel",
        ),
    ],
)
def test_tampered_recipe_is_refused(tmp_path, change, to, message):
    path = tampered(tmp_path / "net.safetensors", change, to)
    with pytest.raises(DeconvfixError, match=message):
        deconvfix.load(path, seeded(Net))


def test_untouched_recipe_is_accepted(tmp_path):
    """The control of the test before."""
    deconvfix.load(tampered(tmp_path / "net.safetensors", {}, "subpixel"), seeded(Net))


def test_recipe_of_other_layers_is_refused(tmp_path):
    converted_file(tmp_path / "net.pt", seeded(Net))
    with pytest.raises(ModelError, match=r"up1: the model has no such layer.*this model"):
        deconvfix.load(tmp_path / "net.pt", seeded(Bilinear))


def test_recipe_of_other_widths_is_refused(tmp_path):
    converted_file(tmp_path / "net.pt", seeded(Net))
    with pytest.raises(ModelError, match=r"up1: the layer is .*in_channels=4"):
        deconvfix.load(tmp_path / "net.pt", seeded(lambda: Net(width=4)))
