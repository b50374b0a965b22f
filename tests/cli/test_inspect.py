"""`deconvfix inspect`: layers as JSON and as a table, forms, peaks and tones."""

import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from torch import nn

from deconvfix.cli.main import main
from tests.support.command import INPUT, Functional, Net, arch, run, run_json, save
from tests.support.trained import heldout

# --- JSON and the command line ------------------------------------------------------------------


def command(*arguments):
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return " ".join(result.stdout.split())


def test_command_names_forms_peaks_and_gradients(tmp_path):
    inputs, _ = heldout("photo_autoencoder")
    np.savez(tmp_path / "in.npz", image=inputs.numpy())
    text = command(
        "fixtures/photo_autoencoder.safetensors",
        *("--arch", "fixtures.models:photo_autoencoder", "--inputs", tmp_path / "in.npz"),
        "--gradients",
    )
    assert "decoder.2, decoder.4, decoder.6: equalized. Its phase sums differ" in text
    assert "on a constant input the ripple is -3" in text
    assert "dB at (0, 0.5) cycles per pixel" in text
    assert "Gradients: encoder.0: Conv2d with kernel 3x3" in text


def test_gradients_are_for_those_who_ask():
    """They concern the training of a new model, not this one."""
    model = (
        "fixtures/photo_autoencoder.safetensors",
        "--arch",
        "fixtures.models:photo_autoencoder",
    )
    assert "Gradients" not in command(*model)
    assert "Gradients: encoder.0" in command(*model, "--gradients")


def test_command_tells_tones_in_hz():
    text = command(
        "fixtures/audio_upsampler.safetensors",
        *("--arch", "fixtures.models:audio_upsampler", "--sample-rate", "8000"),
    )
    assert "up1: tones at 125 Hz (3.1 dB), 250 Hz" in text
    assert "images of up1 coincide with them" in text


# --- inspect ------------------------------------------------------------------------------------


LAYER_KEYS = {
    "name",
    "ndim",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "output_padding",
    "dilation",
    "groups",
    "uneven_overlap",
    "ripple_db",
    "refusal",
}


def test_inspect_prints_an_object_with_format_and_layers(net):
    found = run_json("inspect", net, *arch("Net"))
    assert found["format"].startswith("deconvfix.inspection/")
    assert [layer["name"] for layer in found["layers"]] == ["up1", "up2"]


def test_inspected_layers_have_the_promised_keys(net):
    layers = run_json("inspect", net, *arch("Net"))["layers"]
    assert all(layer.keys() >= LAYER_KEYS for layer in layers)


def test_inspected_layer_shows_its_geometry(net):
    _, layer = run_json("inspect", net, *arch("Net"))["layers"]
    assert {key: layer[key] for key in LAYER_KEYS - {"ripple_db"}} == {
        "name": "up2",
        "ndim": 2,
        "in_channels": 5,
        "out_channels": 2,
        "kernel_size": [3, 3],
        "stride": [2, 2],
        "padding": [[1, 1], [1, 1]],
        "output_padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "uneven_overlap": True,
        "refusal": None,
    }


def test_inspect_sees_calls_on_example_inputs(tmp_path):
    path = save(tmp_path, Functional())
    layers = run_json("inspect", path, *arch("Functional"), *INPUT)["layers"]
    assert [(layer["name"], layer["calls"]) for layer in layers] == [
        ("conv_transpose2d", 1),
        ("up", 1),
    ]


def test_inspect_takes_inputs_from_a_file(tmp_path):
    path = save(tmp_path, Functional())
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 7), np.float32))
    layers = run_json("inspect", path, *arch("Functional"), "--inputs", tmp_path / "in.npz")[
        "layers"
    ]
    assert layers[0]["input_sizes"] == [[3, 7]]


def test_inspect_prints_a_table(net):
    result = run("inspect", net, *arch("Net"))
    assert result.exit_code == 0
    assert [word in result.stdout for word in ("up1", "5->2", "uneven", "dB")] == [True] * 4


def test_inspect_of_a_network_without_such_layers_says_so(tmp_path):
    path = save(tmp_path, nn.Conv1d(2, 3, 1))
    options = ("--arch", "torch.nn:Conv1d", "--arch-kwargs")
    result = run(
        "inspect", path, *options, '{"in_channels": 2, "out_channels": 3, "kernel_size": 1}'
    )
    assert "No transposed convolution found." in result.stdout


def test_architecture_takes_arguments(tmp_path):
    path = save(tmp_path, Net(width=7))
    layers = run_json("inspect", path, *arch("Net"), "--arch-kwargs", '{"width": 7}')["layers"]
    assert layers[0]["in_channels"] == 7


def test_architecture_is_found_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    Path("network_of_the_user.py").write_text("from torch.nn import ConvTranspose1d as Net\n")
    path = save(tmp_path, nn.ConvTranspose1d(2, 3, 4))
    options = '{"in_channels": 2, "out_channels": 3, "kernel_size": 4}'
    result = run("inspect", path, "--arch", "network_of_the_user:Net", "--arch-kwargs", options)
    sys.modules.pop("network_of_the_user", None)
    assert result.exit_code == 0


def test_state_key_chooses_the_weights(tmp_path):
    torch.save({"a": Net().state_dict(), "b": Net(width=4).state_dict()}, tmp_path / "two.pt")
    options = (*arch("Net"), "--arch-kwargs", '{"width": 4}', "--state-key", "b")
    assert run("inspect", tmp_path / "two.pt", *options).exit_code == 0


def test_what_is_left_out_of_the_checkpoint_is_told(tmp_path):
    torch.save({"model": Net().state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "net.pt")
    notes = run_json("inspect", tmp_path / "net.pt", *arch("Net"))["notes"]
    assert "Ignored entries of the checkpoint: optimizer." in notes
