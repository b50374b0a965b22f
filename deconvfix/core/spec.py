"""The description of one transposed convolution, in torch's words, without its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deconvfix.errors import SpecError

__all__ = ["ConvTransposeSpec"]


@dataclass(frozen=True)
class ConvTransposeSpec:
    """Geometry of a transposed convolution with one to three spatial axes.

    Per axis, with the letters of Dumoulin and Visin (arXiv:1603.07285) `k`, `s`, `d`,
    `(p_b, p_e)` and `op`, the layer computes

        y[o] = b + sum of x[i] * W[j] over all i, j with o + p_b = s*i + d*j,   0 <= o < L_out
        L_out = (L - 1)*s + K - p_b - p_e + op,                                 K = d*(k - 1) + 1

    An output position that no pair (i, j) reaches equals the bias.

    Attributes:
        in_channels: Channels of the input, C_in.
        out_channels: Channels of the output, C_out.
        kernel_size: Taps per axis.
        stride: Output pixels between two input pixels, per axis.
        padding: `(begin, end)` output pixels cropped, per axis.
        output_padding: Output pixels appended at the end, per axis.
        dilation: Output pixels between two taps, per axis.
        groups: Number of independent channel groups.
        bias: Whether the layer has a bias, of shape `(C_out,)`.

    The weight has the shape `(C_in, C_out / groups, *kernel_size)`.

    Raises:
        SpecError: If the numbers contradict each other.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "output_padding", "dilation"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        # Lists and NumPy's integers become tuples and ints, so that specs compare and hash.
        object.__setattr__(self, "padding", tuple((int(b), int(e)) for b, e in self.padding))
        self._check()

    @classmethod
    def create(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        ndim: int | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int | Sequence[int]] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> ConvTransposeSpec:
        """Builds a spec from torch's shorthand: an int stands for every axis.

        Args:
            ndim: Number of spatial axes; needed when `kernel_size` is an int.
            padding: Per axis an int (both ends) or a pair `(begin, end)`.
        """
        if isinstance(kernel_size, int):
            if ndim is None:
                raise SpecError(
                    "ConvTransposeSpec.create",
                    f"`kernel_size` is the int {kernel_size} and `ndim` is missing",
                    "the number of spatial axes must be known",
                    "Give `ndim`, or `kernel_size` as a tuple",
                )
            kernel_size = (kernel_size,) * ndim
        n = len(kernel_size)
        # An int stands for both ends of all axes, an entry for both ends of one.
        pads = (padding,) * n if isinstance(padding, int) else tuple(padding)
        return cls(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=tuple(kernel_size),
            stride=_per_axis(stride, n),
            padding=tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in pads),
            output_padding=_per_axis(output_padding, n),
            dilation=_per_axis(dilation, n),
            groups=groups,
            bias=bias,
        )

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def effective_kernel_size(self) -> tuple[int, ...]:
        """K = d*(k - 1) + 1 output pixels per axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(C_in, C_out / groups, *kernel_size)`, as torch and ONNX store it."""
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size.

        A size below 1 means that the layer has no output there; torch raises for it.

        Raises:
            SpecError: If `input_size` does not have one number per axis.

        Kernels that the stride does not divide need an `output_padding` to double a size exactly:

        >>> ConvTransposeSpec.create(8, 6, (3, 3), stride=2, padding=1).output_size((5, 7))
        (9, 13)
        >>> even = ConvTransposeSpec.create(8, 6, (3, 3), stride=2, padding=1, output_padding=1)
        >>> even.output_size((5, 7))
        (10, 14)
        >>> ConvTransposeSpec.create(8, 6, (2,), padding=3).output_size((4,))  # nothing is left
        (-1,)
        """
        if len(input_size) != self.ndim:
            raise SpecError(
                f"{self.ndim}-D transposed convolution",
                f"`input_size` is {tuple(input_size)}",
                f"one length per spatial axis is needed, that is {self.ndim}",
                "Omit the batch and channel axes",
            )
        return tuple(
            (length - 1) * s + big_k - b - e + op
            for length, s, big_k, (b, e), op in zip(
                input_size,
                self.stride,
                self.effective_kernel_size,
                self.padding,
                self.output_padding,
                strict=True,
            )
        )

    def macs_per_position(self) -> int:
        """Multiply-accumulates for each input pixel: C_in * C_out / groups * taps."""
        return self.in_channels * (self.out_channels // self.groups) * math.prod(self.kernel_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConvTransposeSpec:
        """Rebuilds a spec from `to_dict`, or from the same after a trip through JSON."""
        spec = cls(**data)
        # JSON has True and 2.0, which pass for numbers until something takes them for sizes.
        numbers = [getattr(spec, name) for name in ("in_channels", "out_channels", "groups")]
        for name in ("kernel_size", "stride", "dilation", "output_padding"):
            numbers += getattr(spec, name)
        numbers += [amount for pair in spec.padding for amount in pair]
        if any(type(number) is not int for number in numbers) or type(spec.bias) is not bool:
            raise SpecError(
                f"{spec.ndim}-D transposed convolution",
                "a size is no integer, or `bias` is neither true nor false",
                "integers are needed",
                "Correct the recipe, or write it again",
            )
        return spec

    def _check(self) -> None:
        where = f"{self.ndim}-D transposed convolution"
        # The number of axes first, as all other checks go by it.
        if not 1 <= self.ndim <= 3:
            raise SpecError(
                where,
                f"`kernel_size` {self.kernel_size} has {self.ndim} axes",
                "one, two or three spatial axes are supported",
                "Omit the batch and channel axes",
            )
        for name in ("stride", "padding", "output_padding", "dilation"):
            value = getattr(self, name)
            if len(value) != self.ndim:
                raise SpecError(
                    where,
                    f"`{name}` {value} has {len(value)} entries",
                    f"one entry per axis is needed, that is {self.ndim}",
                    f"Give `{name}` for every axis",
                )
        for name, least in (
            ("kernel_size", 1),
            ("stride", 1),
            ("dilation", 1),
            ("output_padding", 0),
        ):
            if min(getattr(self, name)) < least:
                raise SpecError(
                    where,
                    f"`{name}` is {getattr(self, name)}",
                    f"every entry must be at least {least}",
                    f"Correct `{name}`",
                )
        if min(min(pair) for pair in self.padding) < 0:
            raise SpecError(
                where,
                f"`padding` is {self.padding}",
                "padding must not be negative",
                "Use output_padding to make the output longer",
            )
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise SpecError(
                    where,
                    f"`{name}` is {getattr(self, name)}",
                    "at least 1 is needed",
                    f"Correct `{name}`",
                )
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise SpecError(
                    where,
                    f"`groups` is {self.groups} and `{name}` is {getattr(self, name)}",
                    f"groups must divide {name}",
                    "Correct one of the two",
                )


def _per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else tuple(value)
