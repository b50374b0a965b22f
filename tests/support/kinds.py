"""Networks as each kind of model, their conversions, and what is told of them in words that every kind has.

What the kinds do not share by their nature is written down once, with the reason: `CANNOT`, `nameless`,
`decisions`, `in_calls`, `told` and `proof_told`.
"""

import copy
import functools
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from deconvfix.frontends.registry import enter
from deconvfix.parity.bounds import LIMIT
from tests.support.forms import options_of
from tests.support.onnx_models import run

KINDS = ("module", "program", "onnx")
COMPARED = (0, 1)  # seeds of the inputs that outputs are compared on: the example, and another one
EPS = float(np.finfo(np.float32).eps)
# float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of a few dozen of them.
ROUNDED_RIPPLE = 10 ** (-120 / 20)
# An error of the kernels of a few eps moves a distance of 40 dB at most by 1e-5 of itself.
ROUNDED_DB = 8.7e-5


# --- networks -----------------------------------------------------------------------------------


class Labels(nn.Sequential):
    def forward(self, x):
        return super().forward(x).argmax(1)


class Shared(nn.Module):
    """Two layers that share their weight, or their bias."""

    def __init__(self, shared):
        super().__init__()
        self.a, self.b = (nn.ConvTranspose2d(3, 3, 4, 2, 1) for _ in range(2))
        setattr(self.b, shared, getattr(self.a, shared))

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1)

    def forward(self, x):
        return self.up(self.up(x))


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 3, 2, 1)

    def forward(self, x):
        return self.up(x, output_size=(2 * x.shape[2], 2 * x.shape[3] - 1))


class Function(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3, 4, 4))

    def forward(self, x):
        return F.conv_transpose2d(x, self.w, stride=2, padding=1)


def bilinear():
    layer = nn.ConvTranspose2d(2, 2, 4, 2, 1, groups=2, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.copy_((line[:, None] * line).expand_as(layer.weight))
    return nn.Sequential(layer)


def signal():
    """1-D, strides 3 and 2."""
    return nn.Sequential(
        nn.ConvTranspose1d(3, 4, 5, 3, 1, 1), nn.ReLU(), nn.ConvTranspose1d(4, 2, 4, 2, 1)
    )


def picture():
    """2-D: groups, unequal kernel, strides and padding, dilation, output padding; no bias."""
    first = nn.ConvTranspose2d(4, 6, (4, 5), (2, 3), (1, 2), (1, 0), groups=2, dilation=(1, 2))
    return nn.Sequential(first, nn.ReLU(), nn.ConvTranspose2d(6, 2, 3, 2, 1, 1, bias=False))


def pair():
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, 3)
    )


@dataclass(frozen=True)
class Network:
    """A module to build, the shape of its input, and which axes are open."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    open_axes: tuple[int, ...] = ()


NETWORKS = {
    "signal": Network(signal, (2, 3, 11)),
    "picture": Network(picture, (2, 4, 6, 5)),
    "long": Network(lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 7, 3, 2)), (1, 2, 300)),
    "labels": Network(lambda: Labels(nn.ConvTranspose2d(3, 4, 4, 2, 1)), (2, 3, 6, 5)),
    "tied weights": Network(lambda: Shared("weight"), (1, 3, 6, 5)),
    "tied biases": Network(lambda: Shared("bias"), (1, 3, 6, 5)),
    "twice": Network(Twice, (1, 2, 6, 5)),
    "open output size": Network(Sized, (1, 2, 6, 5), (2, 3)),
    "open sizes": Network(pair, (2, 3, 6, 5), (0, 2, 3)),
    "bilinear": Network(bilinear, (1, 2, 6, 5)),
    "empty phases": Network(lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 3)), (1, 2, 6, 5)),
    "function": Network(Function, (1, 2, 6, 5)),
}
FORMS = {
    "subpixel": options_of("subpixel"),
    "nearest": {**options_of("resize"), "fold": False},
    "folded": {**options_of("resize"), "fold": True},
    "linear": {**options_of("resize"), "interpolation": "linear"},
    "equalized": options_of("equalized"),
    "notch": {**options_of("notch"), "reach": 1},
}
FITTED = [form for form in FORMS if form != "subpixel"]


@functools.cache
def example(name, seed=0):
    """Smooth, as features are."""
    x = torch.randn(NETWORKS[name].shape, generator=torch.Generator().manual_seed(seed))
    for axis in range(2, x.dim()):
        x = x + x.roll(1, axis)
    return x


@functools.cache
def kinds_of(name):
    """The network as each kind: the same weights, the same example input."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    module, x = network.build().eval(), example(name)
    open_axes = {axis: torch.export.Dim(f"n{axis}", min=2, max=512) for axis in network.open_axes}
    program = torch.export.export(
        module, (x,), dynamic_shapes=((open_axes,) if open_axes else None)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        deconvfix.export_onnx(program, path, verify=False)
        return {"module": module, "program": program, "onnx": onnx.load(path)}


def copied(model):
    """As `convert` copies what it is given: torch's own copy of a program renames its nodes."""
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    return enter(model)[0].prepare(model, None, inplace=False)


def output_of(model, x):
    if isinstance(model, onnx.ModelProto):
        return run(model, {model.graph.input[0].name: x.numpy()})[0]
    with torch.no_grad():
        return (model if isinstance(model, nn.Module) else model.module())(x).numpy()


def scale_a_weight(model, factor):
    """The largest stored number of a model is another one: what no comparison may overlook."""
    if isinstance(model, onnx.ModelProto):
        arrays = [(one, onnx.numpy_helper.to_array(one).copy()) for one in model.graph.initializer]
        tensor, array = next(
            pair for pair in arrays if pair[1].ndim > 2 and pair[1].dtype == np.float32
        )
        array.reshape(-1)[np.abs(array).argmax()] *= factor
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return
    state = model.state_dict() if isinstance(model, nn.Module) else model.state_dict
    weight = next(value for value in state.values() if value.dim() > 2).detach()
    weight.view(-1)[weight.abs().argmax()] *= factor


# --- what was done, in words and numbers that every kind has --------------------------------------

# Who cannot convert what the others can, by nature.
CANNOT = {
    # Each node of a file gets a kernel of its own, where modules and programs keep weights tied.
    **{("tied weights", form): "onnx" for form in FITTED},
    # A module has no layer there that could be exchanged; a graph has a node.
    **{("function", form): "module" for form in FITTED},
    # A module in another form has a bias of its own, repeated for each phase: the tie would be lost.
    **{("tied biases", form): "module" for form in FITTED},
}


def kinds_for(name, form):
    return [kind for kind in KINDS if CANNOT.get((name, form)) != kind]


@functools.cache
def converted(name, form, kind):
    model = kinds_of(name)[kind]
    # What only files use of the numbers of a weight is left out.
    plain = {"structure": "none", "convolution": "cropped"}
    options = FORMS[form] | (plain if kind == "onnx" else {})
    return deconvfix.convert(model, example_inputs=(example(name),), **options)


def nameless(text, layer):
    """Without the layer's name: a module's path, or in a file the name of a node."""
    return text.replace(f"{layer or '(model)'}: ", "LAYER: ")


def without_decibels(text):
    """They are rounded to 0.1, and compared with that margin."""
    return re.sub(r"-?\d+\.\d+ dB", "dB", text)


def decibels_in(conversion):
    told = " ".join(decided.reason for decided in conversion.plan.decisions)
    return [float(number) for number in re.findall(r"(-?\d+\.\d+) dB", told)]


def decisions(name, kind, conversion):
    """Whatever was decided about each call of a layer."""
    found = []
    for decided in conversion.plan.decisions:
        spec, settings = decided.spec, decided.settings
        if settings is not None:
            settings = replace(settings, structure=None, convolution=None, shuffle=None)
        if "output size" in name:
            # Only a module has an output_padding of its own, which the call replaces.
            own, called = ((0, 0), (1, 0))
            assert spec.output_padding == (own if kind == "module" else called)
            spec = replace(spec, output_padding=called)
        found.append(
            (
                (decided.decision, decided.form),
                without_decibels(nameless(decided.reason, decided.name)).partition(", as cropped/")[
                    0
                ],
                (decided.exact, decided.relative_residual, spec, settings),
                (decided.macs_before, decided.macs_after),
            )
        )
    return in_calls(name, kind, found)


def in_calls(name, kind, layers):
    """A module's layer that runs twice is one layer, but two nodes of a graph."""
    return layers * 2 if (name, kind) == ("twice", "module") else layers


def ripples(name, kind, conversion):
    """Of the layers' kernels, before and after, as fractions of the level."""
    layers = [(one.ripple_db_before, one.ripple_db_after) for one in conversion.report.layers]
    pairs = in_calls(name, kind, layers)
    # None, of layers that are not fitted, cannot be compared with a margin.
    return [math.inf if db is None else 10 ** (db / 20) for pair in pairs for db in pair]


def told(name, conversion):
    """The report's notes."""
    notes = conversion.report.notes
    if not name.startswith("open"):
        # A program or file of fixed sizes cannot be fed the larger constants that a module is.
        notes = [note for note in notes if "grid on a constant input was not measured" not in note]
        notes = [
            re.sub(r" The layers after the converted ones .* is left\.", "", note) for note in notes
        ]
    return [without_decibels(note) for note in notes]


def proof_told(conversion):
    """The proof's notes."""
    # A module is compared in float64, which sees how its stored weights are rounded; ONNX Runtime is not.
    return [
        note for note in conversion.report.parity.notes if "compared layer by layer" not in note
    ]


def verdict(conversion):
    report = conversion.report
    return (report.ok, report.parity.ok, report.parity.problems, report.still_running)


def differences(name, conversions):
    """Between a network's conversions, by kind: what is told otherwise than by the first."""
    first, *others = conversions.items()
    found = []
    for other in others:
        pair = (other, first)
        fidelities = [conversion.report.fidelity for _, conversion in pair]
        for what, (mine, theirs), margin in (
            ("decisions", [decisions(name, *one) for one in pair], None),
            ("verdict", [verdict(conversion) for _, conversion in pair], None),
            ("notes", [told(name, conversion) for _, conversion in pair], None),
            (
                "samples",
                [one and (one.psnr_samples, one.calibration_samples) for one in fidelities],
                None,
            ),
            ("decibels", [decibels_in(conversion) for _, conversion in pair], 0.1001),
            (
                "ripples",
                [ripples(name, *one) for one in pair],
                ROUNDED_RIPPLE,
            ),
            ("distance", [one and one.psnr_db for one in fidelities], ROUNDED_DB),
        ):
            same = mine == theirs if margin is None else mine == pytest.approx(theirs, abs=margin)
            if not same:
                found.append(f"{other[0]}: {what} {mine} {theirs}")
    return found


def rounding(name, form, program, layers):
    """How far rounding may move the outputs of two runs of the same converted network.

    A layer of weight W and bias b rounds by LIMIT * eps * (|W| (*) |x| + |b|) at most (`parity`). What
    follows is linear, or a ReLU, which is linear or nothing, and takes that error to the output by its
    |W| at most: the network on absolute values is the sum over all paths, and each layer adds it once.
    A linear resize rounds each position, up to the size L, by eps * L, and so its two weights.
    """
    if output_of(program, example(name)).dtype.kind != "f":
        return 0.0  # labels are equal: none of these logits tie to rounding
    magnitude = copy.deepcopy(program.module())
    with torch.no_grad():
        for parameter in magnitude.parameters():
            parameter.abs_()
        sums = torch.stack([magnitude(example(name, seed).abs()) for seed in COMPARED])
    positions = 2 * sum(sums.shape[3:]) if form == "linear" else 0
    return EPS * (LIMIT + positions) * layers * float(sums.abs().max())


def outputs_agree(name, models, bound):
    for seed in COMPARED:
        wanted, *others = (output_of(model, example(name, seed)) for model in models)
        for got in others:
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                return False
            if not (np.abs(got.astype(float) - wanted) <= bound).all():
                return False
    return True
