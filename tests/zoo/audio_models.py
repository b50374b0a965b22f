"""Separation networks, codecs and filter banks of small audio packages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Built, ZooModel, seeded


@seeded
def build_demucs() -> Built:
    """Waveform Demucs."""
    from demucs.demucs import Demucs

    model = Demucs(
        ["drums", "voice"], channels=4, depth=3, dconv_lstm=5, dconv_attn=5, dconv_comp=2
    )
    return model, (torch.randn(1, 2, 700),), {}


@seeded
def build_hybrid_demucs() -> Built:
    """Hybrid Demucs, on waveform and spectrogram."""
    from demucs.hdemucs import HDemucs

    model = HDemucs(
        ["drums", "voice"],
        channels=4,
        nfft=256,
        depth=4,
        dconv_lstm=5,
        dconv_attn=5,
        dconv_comp=2,
        time_stride=2,
    )
    return model, (torch.randn(1, 2, 1024),), {}


@seeded
def build_transformer_demucs() -> Built:
    """Hybrid transformer Demucs."""
    from demucs.htdemucs import HTDemucs

    model = HTDemucs(
        ["drums", "voice"],
        channels=4,
        nfft=128,
        depth=2,
        dconv_comp=2,
        t_layers=1,
        t_heads=2,
        t_hidden_scale=1.0,
        samplerate=1000,
        segment=1,
    )
    return model, (torch.randn(1, 2, 1000),), {}


@seeded
def build_snac() -> Built:
    """SNAC with odd strides, which need output padding."""
    from snac import SNAC

    model = SNAC(
        encoder_dim=4,
        encoder_rates=[2, 3, 5],
        decoder_dim=32,
        decoder_rates=[5, 3, 2],
        attn_window_size=None,
        codebook_size=16,
        codebook_dim=4,
        vq_strides=[2, 1],
        # The noise block would draw different noise at every call.
        noise=False,
    )
    return model, (torch.randn(1, 1, 600),), {}


class MaskingSeparator(nn.Module):
    """Analysis, mask and synthesis with a filter bank of asteroid-filterbanks.

    Args:
        bank: Class of the filter bank.
    """

    def __init__(self, bank: type[nn.Module]) -> None:
        super().__init__()
        from asteroid_filterbanks import Decoder, Encoder

        self.encoder = Encoder(bank(16, 16, stride=8))
        self.decoder = Decoder(bank(16, 16, stride=8), padding=4)
        features = self.encoder.filterbank.n_feats_out
        self.mask = nn.Conv1d(features, 2 * features, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Separate a mono waveform into two."""
        spectrum = self.encoder(wave)
        masks = torch.sigmoid(self.mask(spectrum)).unflatten(1, (2, -1))
        return self.decoder(masks * spectrum[:, None])


@seeded
def build_free_filter_bank() -> Built:
    """Learned filter bank, as in Conv-TasNet."""
    from asteroid_filterbanks import FreeFB

    return MaskingSeparator(FreeFB), (torch.randn(2, 1, 160),), {}


@seeded
def build_stft_filter_bank() -> Built:
    """Short-time Fourier transform as a filter bank."""
    from asteroid_filterbanks import STFTFB

    return MaskingSeparator(STFTFB), (torch.randn(2, 1, 160),), {}


AUDIO: tuple[ZooModel, ...] = (
    ZooModel("demucs", "demucs", build_demucs),
    ZooModel(
        "hybrid_demucs",
        "demucs",
        build_hybrid_demucs,
        exports=False,
        note="torch.onnx has no padding of complex spectrograms",
    ),
    ZooModel(
        "transformer_demucs",
        "demucs",
        build_transformer_demucs,
        exports=False,
        note="an assertion on the values of a padded tensor stops torch.export",
    ),
    ZooModel("snac", "snac", build_snac),
    ZooModel("free_filter_bank", "asteroid_filterbanks", build_free_filter_bank),
    ZooModel("stft_filter_bank", "asteroid_filterbanks", build_stft_filter_bank),
)
