"""Converted layers as ordinary torch modules: convolutions, pixel shuffles and padding in sequence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.core import steps
from deconvfix.core.rearrange import inverse
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import ModelError
from deconvfix.forms import form
from deconvfix.forms.base import Compiled, Form, Settings
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.shown import refuse_to_set, shown
from deconvfix.frontends.torch.step_modules import (
    AddBias,
    Crop,
    LocalMeans,
    PixelShuffle,
    ReflectionPad,
    Upsample,
    ZeroPhases,
)

__all__ = [
    "ConvTransposeModule",
    "ConvertedConvTranspose",
    "kernel_of",
    "layer_part",
    "read_weight",
    "spec_of",
    "spread_weight",
]

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_ZERO_PADS: dict[int, Any] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
_REPLICATION_PADS: dict[int, Any] = {
    1: nn.ReplicationPad1d,
    2: nn.ReplicationPad2d,
    3: nn.ReplicationPad3d,
}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

ConvTransposeModule = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class ConvertedConvTranspose(nn.Sequential):
    """What stands in the place of a torch.nn.ConvTranspose: the steps of a form, in sequence.

    Takes what the replaced layer takes: inputs (N, C_in, *L) or (C_in, *L), and `output_size`.
    `weight` and `bias` show the parameters in the replaced layer's layout; the trainable parameters
    are those of `conv`. The geometry can be read under torch's names (`stride`, `padding`, ...).

    Args:
        spec: The replaced layer.
        form_name: A name in `deconvfix.forms.FORMS`.
        settings: The form's choices for this layer.
        weight: The form's kernel, (C_in, C_out / groups, *taps).
        bias: (C_out,) or None.
    """

    def __init__(
        self,
        spec: ConvTransposeSpec,
        form_name: str,
        settings: Settings,
        weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        # The kernel is rearranged once: the modules below are ordinary layers.
        compiled = form(form_name).compile(spec, settings)
        new_weight = torch_steps.rearrange_tensor(compiled.weight, weight, spec.groups)
        new_weight = _like_layout(new_weight, weight)
        if bias is not None:
            bias = torch_steps.rearrange_tensor(compiled.bias, bias).contiguous().clone()
        children: OrderedDict[str, nn.Module] = OrderedDict()
        for step in compiled.steps:
            name, child = _child(step, new_weight, bias, spec)
            # A second step of one kind gets a number.
            children[name if name not in children else f"{name}_{len(children)}"] = child
        super().__init__(children)
        # Under torch's names, as user code reads the geometry of its layers.
        self.spec = spec
        self.form_name = form_name
        self.settings = settings
        self.in_channels = spec.in_channels
        self.out_channels = spec.out_channels
        self.kernel_size = spec.kernel_size
        self.stride = spec.stride
        self.padding = tuple(begin for begin, _ in spec.padding)
        self.output_padding = spec.output_padding
        self.dilation = spec.dilation
        self.groups = spec.groups
        self.padding_mode = "zeros"
        self.kernel_shape = tuple(weight.shape)

    # They show the replaced layer's view of the parameters; TorchScript runs the steps alone.
    __jit_unused_properties__: ClassVar[list[str]] = [
        "_adds_bias", "bias", "convolution", "form", "weight"
    ]  # fmt: skip

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Runs the steps.

        Args:
            input: (N, C_in, *L) or (C_in, *L).
            output_size: As in torch.nn.ConvTranspose2d: replaces the layer's own output_padding.

        Returns:
            (N, C_out, *L_out), or without N.
        """
        # TorchScript compiles one branch alone, so nothing of `_run` has to be scriptable.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            assert output_size is None, "a scripted module has no output_size: trace or export it"
            for module in self:
                input = module(input)
            return input
        else:
            return self._run(input, output_size)

    @torch.jit.unused
    def _run(self, input: Tensor, output_size: list[int] | None) -> Tensor:
        if output_size is None:
            result: Tensor = super().forward(input)
            return result
        # The weight does not depend on output_padding. The largest one gives the most pixels, of which the
        # first ones are those that were asked for: no number here depends on the input, so that a trace or
        # an export stays open.
        spec = replace(self.spec, output_padding=tuple(s - 1 for s in self.stride))
        compiled = (
            torch_steps.compile_exact(spec)
            if self.form.is_exact
            else self.form.compile(spec, self.settings)
        )
        size = spatial_size(self.spec, input.shape, output_size)
        if self.settings.fold and compiled.weight != self.compiled().weight:
            return self._folded(input, size)
        conv = self.convolution
        bias = self.bias if self._adds_bias else conv.bias
        result = torch_steps.apply_steps(compiled.steps, input, conv.weight, bias, conv.groups)
        return torch_steps.shorten(result, size)

    @torch.jit.unused
    def _folded(self, input: Tensor, size: tuple[int, ...]) -> Tensor:
        """A folded layer whose border cannot be that of the largest output: it has its own one."""
        result: Tensor = super().forward(input)
        if tuple(result.shape[-len(size) :]) != size:
            raise ModelError(
                "output_size",
                f"it is {size}, and the folded layer gives {tuple(result.shape[-len(size) :])}",
                "a folded reflection belongs to one output size",
                "Convert the model without `fold`, or with padding_mode 'replicate' or 'zeros'",
            )
        return result

    @property
    def form(self) -> Form:
        """The form that the layer is written in."""
        return form(self.form_name)

    def compiled(self) -> Compiled:
        """The steps, and how kernel and bias are rearranged for them."""
        return self.form.compile(self.spec, self.settings)

    @property
    def convolution(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """The convolution that holds the trainable weight, also called `conv`."""
        conv = self._modules["conv"]
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return conv

    @property
    def weight(self) -> Tensor:
        """The weight of the transposed convolution, (C_in, C_out / groups, *kernel_size).

        Other forms have none: code that uses the weight elsewhere must not get another one.
        """
        if not self.form.is_exact:
            raise AttributeError(
                f"a {self.form_name}-convolution has no transposed weight; its own is `conv.weight`"
            )
        compiled = self.compiled()
        back = inverse(compiled.weight, self.kernel_shape, self.groups)
        return shown(torch_steps.carry_out(back, self.convolution.weight), "conv.weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias of the transposed convolution, (C_out,) or None."""
        if self._adds_bias:
            return self.get_parameter("add_bias.bias")
        if self.convolution.bias is None:
            return None
        compiled = self.compiled()
        back = inverse(compiled.bias, (self.out_channels,))
        return shown(torch_steps.carry_out(back, self.convolution.bias), "conv.bias")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            refuse_to_set(name, f"conv.{name}")
        super().__setattr__(name, value)

    @property
    def _adds_bias(self) -> bool:
        return "add_bias" in self._modules


def spec_of(module: nn.Module) -> ConvTransposeSpec:
    """The description of a torch.nn.ConvTranspose1d, 2d or 3d."""
    assert isinstance(module, ConvTransposeModule)
    return ConvTransposeSpec(
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel_size=module.kernel_size,
        stride=module.stride,
        padding=tuple((int(p), int(p)) for p in module.padding),
        output_padding=module.output_padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
    )


def spread_weight(
    module: ConvertedConvTranspose,
) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
    """The transposed convolution that a converted layer is with the weights it has now."""
    return module.form.spread(module.spec, module.settings, kernel_of(module))


def kernel_of(module: ConvertedConvTranspose) -> NDArray[np.float64]:
    """The form's kernel that a converted layer has now, laid out as `forms.base.Form.fit` says."""
    back = inverse(module.compiled().weight, module.kernel_shape, module.groups)
    return read_weight(torch_steps.carry_out(back, module.convolution.weight))


def layer_part(layer: ConvertedConvTranspose, channels: slice) -> ConvertedConvTranspose:
    """Some output channels of a converted layer in the exact form, without groups, in float64.

    What is stored is cut, and nothing is rearranged again: a wrong number is wrong in the part as well.
    """
    spec = replace(layer.spec, out_channels=channels.stop - channels.start)
    empty = {"device": "meta", "dtype": torch.float64}
    part = ConvertedConvTranspose(
        spec,
        layer.form_name,
        layer.settings,
        torch.empty(spec.weight_shape, **empty),  # type: ignore[call-overload]
        torch.empty(spec.out_channels, **empty) if spec.bias else None,  # type: ignore[call-overload]
    )

    def cut(stored: Tensor) -> Tensor:
        # An output channel after the other, the phases of each together.
        rows = len(stored) // layer.out_channels
        return stored[rows * channels.start : rows * channels.stop].double()

    stored = {name: cut(value) for name, value in layer.state_dict().items()}
    part.load_state_dict(stored, assign=True)
    return part.train(layer.training)


def spatial_size(
    spec: ConvTransposeSpec, shape: Sequence[int], output_size: Sequence[int]
) -> tuple[int, ...]:
    """The spatial sizes in `output_size`, within torch's own limits where they are numbers.

    Raises:
        ValueError: If the size is out of reach, as torch.nn.ConvTranspose2d raises.
    """
    n = spec.ndim
    requested = tuple(output_size)
    if len(requested) != n:
        requested = requested[len(shape) - n :]
    if len(requested) != n:
        raise ValueError(
            f"output_size has {len(output_size)} entries; {n} spatial sizes are needed, or the "
            f"sizes of all {len(shape)} axes"
        )
    if not all(type(size) is int for size in (*requested, *shape[-n:])):
        return requested  # symbolic, or traced: to ask would fix them
    # From no output_padding to one of s - 1, as torch.nn.ConvTranspose2d checks it.
    least = replace(spec, output_padding=(0,) * n).output_size(tuple(shape[-n:]))
    most = tuple(low + s - 1 for low, s in zip(least, spec.stride, strict=True))
    if any(not low <= w <= high for low, w, high in zip(least, requested, most, strict=True)):
        raise ValueError(
            f"requested an output size of {requested}, but valid sizes range from {least} to {most} "
            f"(for an input of {tuple(shape[-n:])})"
        )
    return requested


def read_weight(weight: Tensor) -> NDArray[np.float64]:
    """A copy of the weight as float64 in NumPy."""
    return weight.detach().to("cpu", torch.float64, copy=True).numpy()


def _child(
    step: steps.Step, weight: Tensor, bias: Tensor | None, spec: ConvTransposeSpec
) -> tuple[str, nn.Module]:
    match step:
        case steps.Conv():
            conv = _CONVOLUTIONS[spec.ndim](
                step.in_channels,
                step.out_channels,
                step.kernel_size,
                padding=step.padding,
                dilation=step.dilation,
                groups=step.groups,
                bias=step.bias,
                # Its own weight is replaced at once, so none is allocated.
                device="meta",
            )
            conv.weight = _parameter(weight)
            if step.bias:
                assert bias is not None
                conv.bias = _parameter(bias)
            return "conv", conv
        case steps.Pad(amounts, mode):
            # torch's padding modules want the last axis first.
            flat = tuple(n for pair in reversed(amounts) for n in pair)
            if mode == "reflect":
                return "pad", ReflectionPad(amounts)
            pads = _ZERO_PADS if mode == "zeros" else _REPLICATION_PADS
            return "pad", pads[spec.ndim](flat)
        case steps.Crop(amounts):
            return "crop", Crop(amounts)
        case steps.Resize(factors, interpolation):
            return "upsample", Upsample(factors, interpolation)
        case steps.LocalMeans(reach, groups):
            return "means", LocalMeans(reach, groups)
        case steps.PixelShuffle(factors):
            # torch's own module where it applies, as other tools know it.
            if len(factors) == 2 and factors[0] == factors[1]:
                return "shuffle", nn.PixelShuffle(factors[0])
            return "shuffle", PixelShuffle(factors)
        case steps.ZeroPhases():
            return "zeros", ZeroPhases(step)
        case steps.AddBias():
            assert bias is not None
            return "add_bias", AddBias(_parameter(bias), spec.ndim)
        case steps.ConvTranspose() | steps.PhaseConvs():
            raise AssertionError(f"{type(step).__name__} is no module of a new layer")


def _parameter(value: Tensor) -> nn.Parameter:
    """Integers cannot be trained."""
    return nn.Parameter(value, requires_grad=value.is_floating_point())


def _like_layout(new: Tensor, old: Tensor) -> Tensor:
    """Gives `new` its own memory, in channels_last order if `old` has that order."""
    order = _CHANNELS_LAST.get(old.dim())
    # A kernel of one tap is contiguous in both orders and keeps the plain one.
    if order and old.is_contiguous(memory_format=order) and not old.is_contiguous():
        return new.clone(memory_format=order)
    return new.clone(memory_format=torch.contiguous_format)
