"""One command for the grid that people see: fixed, nothing to fix, or nothing changed."""

import re
import time

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.errors import OptionError
from deconvfix.fixing import search
from deconvfix.frontends.torch.frontend import TorchModuleFrontend
from deconvfix.grid.tones import locked_tones
from deconvfix.grid.visible import visible_grid
from tests.support import onnx_models
from tests.support.gridded import Shuffled, gridded, pictures_for
from tests.support.onnx_models import node, run, value
from tests.support.sounds import Vocoder, sounds_for


@pytest.fixture(scope="module")
def fixed():
    model, data = gridded(), pictures_for(48)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = deconvfix.fix(model, data=data, targets=[x.numpy() for x in data], seconds=8)
    return model, before, found


def test_the_grid_is_gone_and_nothing_is_worse(fixed):
    """Looked at on pictures that no fit has seen, by what the report does not compute itself."""
    model, _, found = fixed
    assert found.report.fixed, found.report.explain()
    new = torch.cat(pictures_for(24, seed=7))
    with torch.no_grad():
        old, fresh = model(new).numpy(), found.model(new).numpy()
    seen = [visible_grid(values, (2, 2), like=old).mean for values in (old, fresh)]
    assert seen[0] > 0.8
    assert seen[1] < 0.35 * seen[0]
    errors = [float(np.mean((values - new.numpy()) ** 2)) for values in (old, fresh)]
    assert errors[1] < errors[0]


def test_the_original_and_its_names_stay(fixed):
    model, before, found = fixed
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    taken = [c for c in found.report.candidates if not c.objections][-1]
    if taken.keeps_names:
        shapes = {name: value.shape for name, value in found.model.state_dict().items()}
        assert shapes == {name: value.shape for name, value in before.items()}
    assert not any(p.grad is not None for p in found.model.parameters())


def test_the_report_has_what_was_measured(fixed):
    report = fixed[2].report
    assert report.heldout == 12
    assert report.grid.seen_before == report.original.seen > report.grid.seen_after
    assert report.grid.worst_after <= report.grid.worst_before + 0.05
    assert report.colour_shift <= 1
    assert report.cost <= 1.301
    assert report.candidates[0].name == "its own layers, trained"
    assert report.goal == "the mean over all shifts of the input"
    assert "Fixed: " in report.explain()
    data = report.to_dict()
    assert data["format"] == "deconvfix.fix/1"
    assert "pictures" not in data
    assert report.to_json()


def test_the_page_shows_regions_before_and_after(fixed):
    html = fixed[2].report.to_html()
    assert html.count("data:image/png;base64,") == 3
    assert "where the grid is strongest before" in html
    assert "where the grid is strongest after" in html
    # Without the pictures, whose letters may spell anything.
    words = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert "<script" not in words
    assert "http" not in words.replace("http-equiv", "")


class Bilinear(nn.Module):
    """Has a transposed convolution, and no grid."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1, groups=3, bias=False)
        row = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.up.weight = nn.Parameter(torch.outer(row, row).expand(3, 1, 4, 4).clone())

    def forward(self, x):
        return self.up(x[:, :, ::2, ::2])


def test_without_a_visible_grid_nothing_is_done():
    model = Bilinear().eval()
    found = deconvfix.fix(model, data=pictures_for(32), seconds=5)
    assert found.model is model
    assert (found.report.fixed, found.report.nothing_to_fix) == (False, True)
    assert found.report.candidates == ()
    assert "nothing to fix" in found.report.reason


def test_if_all_candidates_are_worse_nothing_is_changed(monkeypatch):
    """What came closest is said, and why it was not taken."""

    def worse(model, task):
        broken = gridded()
        with torch.no_grad():
            broken.up.bias += 0.3
        return broken

    monkeypatch.setattr(TorchModuleFrontend, "restore", staticmethod(worse))
    monkeypatch.setattr(search, "_CLOSED", ())
    model = gridded()
    found = deconvfix.fix(model, data=pictures_for(32), seconds=3)
    assert found.model is model
    assert not found.report.fixed
    assert not found.report.nothing_to_fix
    assert "Nothing was changed" in found.report.reason
    assert "the mean of a channel moves by" in found.report.reason
    assert found.report.grid.seen_after == found.report.grid.seen_before


@pytest.mark.parametrize(("left", "kernels"), [(0.0, False), (0.6, True)])
def test_kernels_grow_only_where_something_is_left(monkeypatch, left, kernels):
    asked = []

    def trained(model, task):
        asked.append((task.grow, task.seconds))
        better = gridded()
        with torch.no_grad():
            better.up.weight[better.up.weight > 1] = 1 + 0.03 * left
        return better

    monkeypatch.setattr(TorchModuleFrontend, "restore", staticmethod(trained))
    found = deconvfix.fix(gridded(), data=pictures_for(32), seconds=20, max_cost=3.0)
    names = [candidate.name for candidate in found.report.candidates]
    assert names[0] == "its own layers, trained"
    assert ("1 of its layers with larger kernels, trained" in names) is kernels
    assert [grow for grow, _ in asked] == [(), ("up",)][: 1 + kernels]
    assert asked[0][1] > 10


class Frozen(nn.Module):
    """Weights that are no parameters, so there is nothing to train."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", gridded().up.weight.detach())
        self.register_buffer("down", gridded().down.weight.detach())

    def forward(self, x):
        features = nn.functional.conv2d(x, self.down, stride=2, padding=1)
        return nn.functional.conv_transpose2d(
            features, self.weight, stride=2, padding=1, output_padding=1
        )


def test_what_cannot_be_trained_is_said():
    found = deconvfix.fix(Frozen().eval(), data=pictures_for(32), seconds=3)
    assert not found.report.fixed
    assert "it has no floating-point parameters" in found.report.explain()


def test_integer_parameters_stay_as_they_are():
    model = gridded()
    model.step = nn.Parameter(torch.tensor(3), requires_grad=False)
    model.down.weight.requires_grad_(False)
    found = deconvfix.fix(model, data=pictures_for(32), seconds=2)
    assert [p.requires_grad for p in found.model.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]


@pytest.mark.parametrize("sizes", ["open", "fixed"])
def test_a_program_is_trained_as_its_module(sizes, tmp_path):
    """What comes out is a program with the same state, and saves and loads like one."""
    model, data = gridded(), pictures_for(48)
    even = [2 * torch.export.Dim(name, min=4, max=64) for name in ("height", "width")]
    shapes = {"image": {2: even[0], 3: even[1]}} if sizes == "open" else None
    program = torch.export.export(model, (data[0],), dynamic_shapes=shapes)
    before = {name: value.clone() for name, value in program.state_dict.items()}
    found = deconvfix.fix(program, data=data, seconds=6)
    assert found.report.fixed, found.report.explain()
    spun = found.report.goal == "the mean over all shifts of the input"
    assert spun is (sizes == "open")
    assert all(torch.equal(before[name], value) for name, value in program.state_dict.items())
    torch.export.save(found.model, tmp_path / "fixed.pt2")
    again = torch.export.load(tmp_path / "fixed.pt2").module()
    with torch.no_grad():
        old, fresh = (network(data[1]).numpy() for network in (model, again))
    assert visible_grid(fresh, (2, 2), like=old).mean < 0.5 * visible_grid(old, (2, 2)).mean


def upsampling_onnx():
    """The last layer of `gridded` alone, whose input has half the size of its output."""
    weight = gridded().up.weight.detach().numpy()
    return onnx_models.model(
        [node("ConvTranspose", "x w", "y", name="up", strides=[2, 2], pads=[1, 1, 0, 0])],
        [value("x", ["n", 12, "h", "v"])],
        [value("y", ["n", 3, "i", "j"])],
        {"w": weight},
    )


def autoencoder_onnx():
    """`gridded`, as a file whose sizes are open."""
    network = gridded()
    arrays = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    down = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    up = {**down, "output_padding": [1, 1]}
    return onnx_models.model(
        [
            node("Conv", "x down.weight down.bias", "a", **down),
            node("Relu", "a", "b"),
            node("ConvTranspose", "b up.weight up.bias", "y", name="up", **up),
        ],
        [value("x", ["n", 3, "h", "v"])],
        [value("y", ["n", 3, "i", "j"])],
        arrays,
    )


def test_layers_of_an_onnx_model_are_fitted_in_closed_form():
    """Towards the mean over shifts; looked at on pictures that no fit has seen."""
    proto = autoencoder_onnx()
    data = [x.numpy() for x in pictures_for(48)]
    found = deconvfix.fix(proto, data=data, targets=data, seconds=20)
    assert found.report.fixed, found.report.explain()
    assert found.report.goal == "the mean over all shifts of the input"
    assert "Nothing is trained" in found.report.explain()
    assert type(found.model) is type(proto)
    new = torch.cat(pictures_for(24, seed=7)).numpy()
    old, fresh = (run(each, {"x": new})[0] for each in (proto, found.model))
    seen = [visible_grid(values, (2, 2), like=old).mean for values in (old, fresh)]
    assert seen[1] < 0.2 * seen[0]
    assert np.mean((fresh - new) ** 2) < np.mean((old - new) ** 2)
    # Names and shapes stay.
    assert [(each.name, each.dims) for each in found.model.graph.initializer] == [
        (each.name, each.dims) for each in proto.graph.initializer
    ]


def test_where_no_shift_helps_onnx_layers_lose_what_is_locked():
    with torch.no_grad():
        data = [{"x": gridded().down(x).numpy()} for x in pictures_for(32)]
    proto = upsampling_onnx()
    found = deconvfix.fix(proto, data=data, seconds=20)
    assert "less what is locked to the phase" in found.report.goal
    assert found.report.fixed, found.report.explain()
    assert found.report.grid.seen_after < 0.5 * found.report.grid.seen_before


def test_a_pixel_shuffle_makes_the_same_grid_and_is_fixed_in_place():
    model = Shuffled().eval()
    found = deconvfix.fix(model, data=pictures_for(48), seconds=6)
    assert found.report.fixed, found.report.explain()
    assert found.report.cost == 1
    shapes = {name: value.shape for name, value in found.model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    new = torch.cat(pictures_for(24, seed=7))
    with torch.no_grad():
        old, fresh = model(new).numpy(), found.model(new).numpy()
    seen = [visible_grid(values, (2, 2), like=old).mean for values in (old, fresh)]
    assert seen[1] < 0.35 * seen[0]


def test_a_sound_loses_its_tones_and_nothing_else():
    """In decibels below the programme and in Hz; looked at on sounds that no fit has seen."""
    model = Vocoder(3e-3).eval()
    found = deconvfix.fix(model, data=sounds_for(64), seconds=6, sample_rate=8000)
    report = found.report
    assert report.fixed, report.explain()
    assert report.is_sound
    assert "dB below the programme" in report.explain()
    assert "The strongest tone is at 4000 Hz" in report.explain()
    assert "steps" not in report.explain()
    new = torch.cat(sounds_for(24, seed=7))
    with torch.no_grad():
        old, fresh = (network(new).numpy() for network in (model, found.model))
        silent = [network(torch.zeros(1, 1, 64)).numpy() for network in (model, found.model)]
    heard = [locked_tones(values, (2,), like=old).total_db for values in (old, fresh)]
    assert heard[0] > -40
    assert heard[1] < -60
    assert np.std(silent[1]) < 0.1 * np.std(silent[0])
    # 40 dB of what is not the tone, as promised.
    sound = old - 3e-3 * np.where(np.arange(old.shape[2]) % 2, -1, 1)
    assert np.mean((fresh - sound) ** 2) < 1e-4 * np.mean(sound**2)
    html = report.to_html()
    assert "The tones that are heard" in html
    assert "1/255" not in html


def test_tones_that_are_not_heard_are_left():
    found = deconvfix.fix(Vocoder(1e-5).eval(), data=sounds_for(64), seconds=3)
    assert found.report.nothing_to_fix
    assert "No tones that are heard" in found.report.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": pictures_for(8)}, "there are 2 batches"),
        ({"data": pictures_for(32), "seconds": 0}, "the value is 0"),
        ({"data": pictures_for(32), "max_cost": 0.5}, "the value is 0.5"),
    ],
)
def test_wrong_options_are_said(options, words):
    with pytest.raises(OptionError, match=words):
        deconvfix.fix(gridded(), **options)


def test_a_network_whose_runs_leave_no_time_to_train_is_told_of():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = gridded()

        def forward(self, image):
            time.sleep(0.02)
            return self.network(image)

    found = deconvfix.fix(Slow().eval(), data=pictures_for(32), seconds=1)
    assert "left 1 s for training" in found.report.explain()
    quick = deconvfix.fix(gridded(), data=pictures_for(32), seconds=4)
    assert "for training" not in quick.report.explain()
