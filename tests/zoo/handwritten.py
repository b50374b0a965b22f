"""Hand-written image models for uses of transposed convolution that few packages exercise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hook_spectral_norm

from .entry import Built, ZooModel, seeded


class ModulatedUpsample(nn.Module):
    """StyleGAN2-like upsampling whose weights are computed per sample at run time.

    Args:
        channels: Input and output channels.
        style_channels: Length of the style vector.
    """

    def __init__(self, channels: int, style_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.to_scale = nn.Linear(style_channels, channels)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        blur = torch.outer(taps, taps)
        self.register_buffer("blur", (4 * blur / blur.sum()).expand(channels, 1, 4, 4).clone())

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Upsample twice, one convolution group per sample, then blur."""
        batch, channels, height, width = features.shape
        scale = self.to_scale(style) + 1
        weight = self.weight[None] * scale[:, :, None, None, None]
        energy = weight.square().sum(dim=(1, 3, 4), keepdim=True)
        weight = (weight * torch.rsqrt(energy + 1e-8)).reshape(batch * channels, channels, 3, 3)
        grouped = features.reshape(1, batch * channels, height, width)
        wide = F.conv_transpose2d(grouped, weight, stride=2, groups=batch)
        wide = wide.reshape(batch, channels, *wide.shape[2:])
        return F.conv2d(F.pad(wide, (1, 1, 1, 1)), self.blur, groups=channels)


class StyleSynthesis(nn.Module):
    """Two modulated upsamplings from a learned constant.

    Args:
        channels: Feature channels.
        style_channels: Length of the style vector.
    """

    def __init__(self, channels: int = 6, style_channels: int = 5) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.blocks = nn.ModuleList(ModulatedUpsample(channels, style_channels) for _ in range(2))
        self.to_image = nn.Conv2d(channels, 3, 1)

    def forward(self, style: Tensor) -> Tensor:
        """Return one image per style vector."""
        features = self.constant.expand(style.shape[0], -1, -1, -1)
        for block in self.blocks:
            features = F.leaky_relu(block(features, style), 0.2)
        return self.to_image(features)


class ImageTranslator(nn.Module):
    """A pix2pix-like UNet: four-tap stride-two convolutions down and up with skips.

    Args:
        width: Channels of the outermost level.
        depth: Number of levels.
    """

    def __init__(self, width: int = 4, depth: int = 4) -> None:
        super().__init__()
        sizes = [3] + [width * 2**level for level in range(depth)]
        self.downs = nn.ModuleList(
            nn.Conv2d(sizes[level], sizes[level + 1], 4, stride=2, padding=1)
            for level in range(depth)
        )
        self.ups = nn.ModuleList()
        self.norms = nn.ModuleList()
        for level in reversed(range(depth)):
            factor = 1 if level == depth - 1 else 2
            self.ups.append(
                nn.ConvTranspose2d(
                    factor * sizes[level + 1], sizes[level], 4, 2, 1, bias=level == 0
                )
            )
            self.norms.append(nn.BatchNorm2d(sizes[level]) if level else nn.Tanh())

    def forward(self, image: Tensor) -> Tensor:
        """Translate an image whose sides are multiples of ``2 ** depth``."""
        skips: list[Tensor] = []
        features = image
        for down in self.downs:
            features = F.leaky_relu(down(features), 0.2)
            skips.append(features)
        skips.pop()
        for up, norm in zip(self.ups, self.norms, strict=True):
            features = norm(up(F.relu(features)))
            if skips:
                features = torch.cat((features, skips.pop()), dim=1)
        return features


class FullyConvolutionalSegmenter(nn.Module):
    """An FCN-8s-like network whose bilinear upsamplings are fixed transposed convolutions.

    Args:
        classes: Number of score maps.
    """

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.deep = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.score_stem = nn.Conv2d(8, classes, 1)
        self.score_deep = nn.Conv2d(12, classes, 1)
        self.upsample_2 = self._bilinear(classes, 4, 2)
        self.upsample_8 = self._bilinear(classes, 16, 8)

    @staticmethod
    def _bilinear(classes: int, kernel_size: int, stride: int) -> nn.ConvTranspose2d:
        layer = nn.ConvTranspose2d(classes, classes, kernel_size, stride, bias=False)
        center = (kernel_size - 1) / 2
        taps = 1 - (torch.arange(kernel_size) - center).abs() / stride
        with torch.no_grad():
            layer.weight.zero_()
            for index in range(classes):
                layer.weight[index, index] = torch.outer(taps, taps)
        return layer.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return score maps as large as the image."""
        shallow = F.relu(self.stem(image))
        deep = self.upsample_2(self.score_deep(F.relu(self.deep(shallow))))
        scores = self.score_stem(shallow)
        height, width = scores.shape[2:]
        scores = scores + deep[:, :, 1 : 1 + height, 1 : 1 + width]
        wide = self.upsample_8(scores)
        return wide[:, :, 4 : 4 + image.shape[2], 4 : 4 + image.shape[3]]


class SpectralGenerator(nn.Module):
    """A DCGAN-like generator under both implementations of spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = hook_spectral_norm(nn.ConvTranspose2d(7, 8, 4))
        self.middle = parametrizations.spectral_norm(nn.ConvTranspose2d(8, 6, 4, 2, 1))
        self.last = parametrizations.weight_norm(nn.ConvTranspose2d(6, 3, 4, 2, 1))

    def forward(self, latent: Tensor) -> Tensor:
        """Return one image per latent vector."""
        features = F.relu(self.seed(latent[:, :, None, None]))
        return torch.tanh(self.last(F.relu(self.middle(features))))


class TiedAutoencoder(nn.Module):
    """An autoencoder whose decoder applies the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 8, 4, stride=2, padding=1)
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode an image whose sides are multiples of four."""
        code = F.relu(self.second(F.relu(self.first(image))))
        hidden = F.relu(F.conv_transpose2d(code, self.second.weight, stride=2, padding=1))
        return F.conv_transpose2d(
            hidden, self.first.weight, self.bias, stride=2, padding=1, output_padding=1
        )


class SizedAutoencoder(nn.Module):
    """An autoencoder that asks each transposed convolution for the size it lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=3, padding=1)
        self.widen = nn.ConvTranspose2d(6, 4, 3, stride=3, padding=1)
        self.restore = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return a reconstruction of exactly the image's size."""
        hidden = F.relu(self.first(image))
        code = F.relu(self.second(hidden))
        wide = F.relu(self.widen(code, output_size=hidden.shape[2:]))
        return self.restore(wide, output_size=list(image.shape))


class SharedUpsampler(nn.Module):
    """One transposed convolution called at three scales, functional and as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Upsample eight times."""
        features = F.gelu(self.upsample(image))
        features = F.gelu(self.upsample(features)) + F.interpolate(image, scale_factor=4.0)
        return F.conv_transpose2d(
            features, self.upsample.weight.flip(2, 3), self.upsample.bias, stride=2
        )


class VolumeUpsampler(nn.Module):
    """Grouped, dilated, strided and anisotropic transposed convolutions in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.ConvTranspose3d(6, 4, (1, 4, 3), (1, 2, 3), (0, 1, 0), groups=2)
        self.dilated = nn.ConvTranspose3d(
            4, 4, 3, stride=(2, 1, 2), padding=2, output_padding=(1, 0, 1), dilation=2, groups=4
        )
        self.gapped = nn.ConvTranspose3d(4, 2, 1, stride=2)

    def forward(self, volume: Tensor) -> Tensor:
        """Upsample a volume."""
        return self.gapped(F.silu(self.dilated(F.silu(self.grouped(volume)))))


class FastSuperResolution(nn.Module):
    """An FSRCNN-like network ending in one nine-tap transposed convolution.

    Args:
        scale: Enlargement.
    """

    def __init__(self, scale: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8)
        )
        self.enlarge = nn.ConvTranspose2d(8, 1, 9, scale, padding=4, output_padding=scale - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge a one-channel image."""
        return self.enlarge(self.features(image))


@seeded
def build_style_synthesis() -> Built:
    """Modulated weights, two samples, so that the groups hold different weights."""
    return StyleSynthesis(), (torch.randn(2, 5),), {}


@seeded
def build_image_translator() -> Built:
    """Image-to-image UNet."""
    return ImageTranslator(), (torch.randn(1, 3, 48, 32),), {}


@seeded
def build_segmenter() -> Built:
    """Bilinear transposed convolutions."""
    return FullyConvolutionalSegmenter(), (torch.randn(1, 3, 64, 48),), {}


@seeded
def build_spectral_generator() -> Built:
    """Both spectral norms and the parametrized weight norm."""
    model = SpectralGenerator().train()
    # The power iteration only runs in train mode; a few steps make the norm meaningful.
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 7))
    return model, (torch.randn(2, 7),), {}


@seeded
def build_tied_autoencoder() -> Built:
    """Encoder weights reused by the decoder."""
    return TiedAutoencoder(), (torch.randn(2, 3, 20, 12),), {}


@seeded
def build_sized_autoencoder() -> Built:
    """Odd sizes that need the ``output_size`` argument."""
    return SizedAutoencoder(), (torch.randn(1, 2, 24, 31),), {}


@seeded
def build_shared_upsampler() -> Built:
    """One layer, several calls."""
    return SharedUpsampler(), (torch.randn(1, 4, 5, 6),), {}


@seeded
def build_volume_upsampler() -> Built:
    """Awkward three-dimensional parameters."""
    return VolumeUpsampler(), (torch.randn(1, 6, 4, 5, 3),), {}


@seeded
def build_fast_super_resolution() -> Built:
    """Super-resolution by a single transposed convolution."""
    return FastSuperResolution(), (torch.randn(1, 1, 13, 10),), {}


HANDWRITTEN: tuple[ZooModel, ...] = (
    ZooModel("style_synthesis", "torch", build_style_synthesis),
    ZooModel("image_translator", "torch", build_image_translator),
    ZooModel("segmenter", "torch", build_segmenter),
    ZooModel("spectral_generator", "torch", build_spectral_generator),
    ZooModel("tied_autoencoder", "torch", build_tied_autoencoder),
    ZooModel("sized_autoencoder", "torch", build_sized_autoencoder),
    ZooModel("shared_upsampler", "torch", build_shared_upsampler),
    ZooModel("volume_upsampler", "torch", build_volume_upsampler),
    ZooModel("fast_super_resolution", "torch", build_fast_super_resolution),
)
