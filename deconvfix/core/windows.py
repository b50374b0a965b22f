"""The windows of the output phases: which input pixels, and which taps, each output position needs.

Per axis, with the letters of `ConvTransposeSpec`. Output position o = s*u + f has phase f. By the definition
its taps are those j with d*j = f + p_b (mod s), and tap j meets the pixel

    i = u + a_j,    a_j = (f + p_b - d*j) / s

so a phase is a convolution of stride 1 with its own taps, a_j apart by d/g where g = gcd(s, d), without zero
taps and without a crop at the begin. Each phase has U = L - 1 + ceil((K - p_b - p_e + op) / s) positions, and
the last `surplus` of the s*U output positions are too many: none where s divides K - p_b - p_e + op.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deconvfix.core.spec import ConvTransposeSpec

__all__ = ["AxisWindows", "Window", "windows"]


@dataclass(frozen=True)
class Window:
    """One phase of an axis.

    Attributes:
        taps: The kernel's taps by their place in the input, the first one first; empty where none reaches.
        first: Place of the first one, in pixels from the position's own, u.
    """

    taps: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class AxisWindows:
    """All phases of an axis.

    Attributes:
        phases: For each phase of the output its window.
        gap: Distance of the taps of a window, in pixels.
        more: U - L: how many more positions each phase has than the input has pixels.
        surplus: Output positions at the end that are too many.
        stored: Taps of the kernel.
    """

    phases: tuple[Window, ...]
    gap: int
    more: int
    surplus: int
    stored: int

    def pads(self, first: int, span: int) -> tuple[int, int]:
        """Zeros `(begin, end)` for a convolution whose taps lie from `first` to `first + span`."""
        return -first, self.more + first + span

    def union(self) -> tuple[int, int, int]:
        """The smallest regular window that holds those of all phases: first place, taps, distance."""
        reached = [
            window.first + self.gap * m for window in self.phases for m in range(len(window.taps))
        ]
        first = min(reached)
        distance = math.gcd(*(place - first for place in reached)) or 1
        return first, (max(reached) - first) // distance + 1, distance

    def taps_in_union(self) -> tuple[int, ...]:
        """For each phase and each tap of `union` the kernel's tap there; `stored` where there is none.

        A kernel of four taps, of which each phase of a stride of two sees two, padding 1:

        >>> axis, _ = windows(ConvTransposeSpec.create(1, 1, (4, 4), stride=2, padding=1))
        >>> axis.union()
        (-1, 3, 1)
        >>> axis.taps_in_union()
        (3, 1, 4, 4, 2, 0)
        """
        first, size, distance = self.union()
        taps = [self.stored] * (size * len(self.phases))
        for f, window in enumerate(self.phases):
            for m, tap in enumerate(window.taps):
                taps[f * size + (window.first + self.gap * m - first) // distance] = tap
        return tuple(taps)


def windows(spec: ConvTransposeSpec) -> tuple[AxisWindows, ...]:
    """The windows of all axes; see the module's text."""
    geometry = zip(
        spec.kernel_size,
        spec.stride,
        spec.dilation,
        spec.padding,
        spec.output_padding,
        strict=True,
    )
    return tuple(_axis(k, s, d, p_b, p_e, op) for k, s, d, (p_b, p_e), op in geometry)


def _axis(k: int, s: int, d: int, p_b: int, p_e: int, op: int) -> AxisWindows:
    beyond = d * (k - 1) + 1 - p_b - p_e + op
    phases = []
    for f in range(s):
        taps = [j for j in reversed(range(k)) if (f + p_b - d * j) % s == 0]
        # The last tap meets the first pixel.
        phases.append(Window(tuple(taps), (f + p_b - d * taps[0]) // s if taps else 0))
    return AxisWindows(tuple(phases), d // math.gcd(s, d), -(-beyond // s) - 1, -beyond % s, k)
