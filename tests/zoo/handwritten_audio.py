"""Hand-written audio models for uses of transposed convolution that few packages exercise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm as hook_weight_norm

from .entry import Built, ZooModel, seeded


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution that drops the samples depending on future input."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the plain operation and trim its tail to ``length * stride`` samples."""
        full = super().forward(input, output_size)
        return full[..., : input.shape[-1] * self.stride[0]]


class InverseStft(nn.Module):
    """Overlap-add synthesis written as a transposed convolution with fixed bases.

    Args:
        frame: Frame length.
        hop: Distance between frames.
    """

    def __init__(self, frame: int = 16, hop: int = 4) -> None:
        super().__init__()
        self.hop = hop
        window = torch.hann_window(frame)
        angles = (
            2 * math.pi * torch.outer(torch.arange(frame // 2 + 1), torch.arange(frame)) / frame
        )
        fold = torch.full((frame // 2 + 1, 1), 2.0)
        fold[0] = fold[-1] = 1.0
        bases = torch.cat((fold * torch.cos(angles), -fold * torch.sin(angles))) / frame
        self.register_buffer("bases", (bases * window)[:, None])
        self.register_buffer("window_energy", window.square()[None, None])

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the waveform of a one-sided spectrogram."""
        spectrum = torch.cat((real, imaginary), dim=1)
        wave = F.conv_transpose1d(spectrum, self.bases, stride=self.hop)
        ones = torch.ones_like(spectrum[:, :1])
        envelope = F.conv_transpose1d(ones, self.window_energy, stride=self.hop)
        return wave / envelope.clamp_min(0.1)


class SynthesisFilterBank(nn.Module):
    """A four-band cosine-modulated filter bank, first zero-stuffed, then interpolated.

    Args:
        bands: Number of sub-bands, also the upsampling factor.
        taps: Filter length.
    """

    def __init__(self, bands: int = 4, taps: int = 25) -> None:
        super().__init__()
        self.bands = bands
        time = torch.arange(taps) - (taps - 1) / 2
        band = torch.arange(bands)[:, None] + 0.5
        cosines = torch.cos(math.pi / bands * band * time + math.pi / 4)
        self.register_buffer("filters", (cosines * torch.kaiser_window(taps))[None])
        self.register_buffer("stuffing", bands * torch.eye(bands)[:, :, None].repeat(1, 1, bands))
        self.stuffing[:, :, 1:] = 0

    def forward(self, subbands: Tensor) -> Tensor:
        """Merge the sub-bands into one signal."""
        stuffed = F.conv_transpose1d(subbands, self.stuffing, stride=self.bands)
        return F.conv1d(stuffed, self.filters, padding=self.filters.shape[-1] // 2)


class AntiAliasedUpsample(nn.Module):
    """BigVGAN-like depthwise resampling with one windowed-sinc filter for every channel."""

    def __init__(self) -> None:
        super().__init__()
        time = torch.arange(12) - 5.5
        kernel = torch.sinc(time / 2) * torch.kaiser_window(12, periodic=False, beta=4.66)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, signal: Tensor) -> Tensor:
        """Double the sampling rate."""
        channels = signal.shape[1]
        padded = F.pad(signal, (5, 5), mode="replicate")
        kernel = self.kernel.expand(channels, -1, -1)
        wide = 2 * F.conv_transpose1d(padded, kernel, stride=2, groups=channels)
        return wide[..., 15:-15]


class SnakeBlock(nn.Module):
    """An anti-aliased periodic activation between two convolutions.

    Args:
        channels: Feature channels.
    """

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.before = nn.Conv1d(channels, channels, 3, padding=1)
        self.upsample = AntiAliasedUpsample()
        self.frequency = nn.Parameter(torch.rand(channels, 1) + 0.5)
        self.after = nn.Conv1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, signal: Tensor) -> Tensor:
        """Apply the block, keeping the length."""
        wide = self.upsample(self.before(signal))
        wide = wide + torch.sin(self.frequency * wide).square() / self.frequency
        return signal + self.after(wide)


class VocoderBlock(nn.Module):
    """A HiFi-GAN-like stage under the old hook-based weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample = hook_weight_norm(nn.ConvTranspose1d(8, 6, 16, stride=8, padding=4))
        self.odd_upsample = hook_weight_norm(
            nn.ConvTranspose1d(6, 4, 11, stride=5, padding=3, output_padding=0)
        )
        self.residuals = nn.ModuleList(
            hook_weight_norm(nn.Conv1d(4, 4, 3, padding=dilation, dilation=dilation))
            for dilation in (1, 3)
        )
        self.output = nn.Conv1d(4, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """Turn a spectrogram into a waveform 40 times as long."""
        features = self.upsample(F.leaky_relu(mel, 0.1))
        features = self.odd_upsample(F.leaky_relu(features, 0.1))
        for residual in self.residuals:
            features = features + residual(F.leaky_relu(features, 0.1))
        return torch.tanh(self.output(features))


@seeded
def build_causal_decoder() -> Built:
    """Causal transposed convolutions in a row."""
    model = nn.Sequential(
        CausalConvTranspose1d(6, 5, 8, stride=4),
        nn.ELU(),
        CausalConvTranspose1d(5, 3, 5, stride=3, bias=False),
        nn.ELU(),
        nn.Conv1d(3, 1, 1),
    )
    return model, (torch.randn(2, 6, 9),), {}


@seeded
def build_inverse_stft() -> Built:
    """Inverse short-time Fourier transform."""
    return InverseStft(), (torch.randn(2, 9, 12), torch.randn(2, 9, 12)), {}


@seeded
def build_filter_bank() -> Built:
    """Four-band synthesis."""
    return SynthesisFilterBank(), (torch.randn(2, 4, 20),), {}


@seeded
def build_anti_aliased() -> Built:
    """Fixed depthwise upsampling."""
    return nn.Sequential(SnakeBlock(), SnakeBlock()), (torch.randn(2, 5, 21),), {}


@seeded
def build_vocoder_block() -> Built:
    """Hook-based weight norm."""
    return VocoderBlock(), (torch.randn(1, 8, 11),), {}


HANDWRITTEN_AUDIO: tuple[ZooModel, ...] = (
    ZooModel("causal_decoder", "torch", build_causal_decoder),
    ZooModel("inverse_stft", "torch", build_inverse_stft),
    ZooModel("filter_bank", "torch", build_filter_bank),
    ZooModel("anti_aliased", "torch", build_anti_aliased),
    ZooModel("vocoder_block", "torch", build_vocoder_block),
)
