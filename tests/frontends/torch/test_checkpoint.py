"""Checkpoints are read as data, written with their recipe, and come back as the converted model."""

import copy
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deconvfix
from deconvfix.errors import CheckpointError, DeconvfixError, ModelError
from deconvfix.frontends.torch import checkpoint
from deconvfix.plan import Plan
from tests.support.checkpoints import (
    ALL,
    PICKLED,
    Bilinear,
    Net,
    converted_file,
    example,
    same_bits,
    save,
    seeded,
)
from tests.support.forms import options_of


class Runs:
    """A pickle of this runs a shell command when it is read by an unguarded unpickler."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


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


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"], ids=["pt", "st"])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match="there is no such file"):
        checkpoint.read(tmp_path / name)


def test_a_folder_without_weights_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="it has no safetensors with weights"):
        checkpoint.read(tmp_path)


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
    conversion = deconvfix.convert(seeded(Net), **options_of(to))
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
        pytest.param({"spec": None}, "subpixel", "2 entries are missing .up1.weight", id="no spec"),
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
