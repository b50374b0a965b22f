"""Codecs and vocoders of the transformers package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .entry import Built, ZooModel, seeded

if TYPE_CHECKING:
    from transformers import VitsModel

HIFI_GAN = {
    "upsample_initial_channel": 32,
    "upsample_rates": [4, 3, 2],
    "upsample_kernel_sizes": [8, 7, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}


@seeded
def build_encodec() -> Built:
    """Causal EnCodec with weight norm, waveform to waveform."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[6.0, 12.0],
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[5, 4, 2],
        codebook_size=32,
        codebook_dim=16,
        num_lstm_layers=1,
    )
    return EncodecModel(config), (), {"input_values": torch.randn(1, 1, 600)}


@seeded
def build_encodec_stereo() -> Built:
    """Non-causal EnCodec with group norm, trimming on both sides."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[24.0],
        audio_channels=2,
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[4, 3],
        codebook_size=32,
        codebook_dim=16,
        num_lstm_layers=1,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )
    return EncodecModel(config), (), {"input_values": torch.randn(1, 2, 500)}


@seeded
def build_dac() -> Built:
    """Descript audio codec, odd and even ratios."""
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 3, 4],
        decoder_hidden_size=32,
        n_codebooks=2,
        codebook_size=32,
        codebook_dim=4,
    )
    return DacModel(config), (), {"input_values": torch.randn(1, 1, 480)}


def _mimi_fields() -> dict[str, object]:
    return {
        "hidden_size": 32,
        "num_filters": 4,
        "upsampling_ratios": [5, 4, 2],
        "codebook_size": 32,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 4,
        "upsample_groups": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "sliding_window": 20,
    }


@seeded
def build_mimi() -> Built:
    """Mimi, whose latent upsampling is depthwise and whose decoder is causal."""
    from transformers import MimiConfig, MimiModel

    return MimiModel(MimiConfig(**_mimi_fields())), (), {"input_values": torch.randn(1, 1, 800)}


@seeded
def build_pocket_tts_tokenizer() -> Built:
    """The continuous tokenizer of Pocket TTS."""
    from transformers import PocketTTSAudioTokenizerConfig, PocketTTSAudioTokenizerModel

    fields = _mimi_fields()
    for unused in (
        "codebook_size",
        "codebook_dim",
        "vector_quantization_hidden_dimension",
        "num_quantizers",
    ):
        del fields[unused]
    config = PocketTTSAudioTokenizerConfig(**fields, latent_stride=4, latent_dim=8)
    model = PocketTTSAudioTokenizerModel(config)
    return model, (), {"input_values": torch.randn(1, 1, 800)}


@seeded
def build_speecht5_hifigan() -> Built:
    """SpeechT5's vocoder."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(model_in_dim=12, **HIFI_GAN)
    return SpeechT5HifiGan(config), (torch.randn(1, 9, 12),), {}


@seeded
def build_speecht5_hifigan_weight_norm() -> Built:
    """SpeechT5's vocoder as it is trained, under weight norm."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    model = SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=12, **HIFI_GAN))
    model.apply_weight_norm()
    return model, (torch.randn(2, 7, 12),), {}


@seeded
def build_fastspeech2_hifigan() -> Built:
    """The vocoder of FastSpeech2Conformer."""
    from transformers import FastSpeech2ConformerHifiGan, FastSpeech2ConformerHifiGanConfig

    config = FastSpeech2ConformerHifiGanConfig(model_in_dim=12, **HIFI_GAN)
    return FastSpeech2ConformerHifiGan(config), (torch.randn(1, 9, 12),), {}


@seeded
def build_univnet() -> Built:
    """UnivNet with its kernel predictor."""
    from transformers import UnivNetConfig, UnivNetModel

    config = UnivNetConfig(
        model_in_channels=8,
        model_hidden_channels=8,
        num_mel_bins=10,
        resblock_stride_sizes=[4, 4, 3],
        resblock_dilation_sizes=[[1, 3], [1, 3], [1, 3]],
        kernel_predictor_num_blocks=1,
        kernel_predictor_hidden_channels=8,
    )
    inputs = {
        "input_features": torch.randn(1, 6, 10),
        # Left out, the model would draw different noise at every call.
        "noise_sequence": torch.randn(1, 6, 8),
    }
    return UnivNetModel(config), (), inputs


def _vits() -> VitsModel:
    from transformers import VitsConfig, VitsModel

    config = VitsConfig(
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=33,
        depth_separable_num_layers=1,
        duration_predictor_num_flows=1,
        duration_predictor_filter_channels=16,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        # The model draws noise at every call; scaled by zero it stays reproducible.
        noise_scale=0.0,
        noise_scale_duration=0.0,
        **HIFI_GAN,
    )
    return VitsModel(config)


@seeded
def build_vits() -> Built:
    """The whole of VITS, text to waveform, of a length that depends on the weights."""
    return _vits(), (), {"input_ids": torch.randint(1, 38, (1, 8))}


@seeded
def build_vits_decoder() -> Built:
    """The HiFi-GAN inside VITS."""
    return _vits().decoder, (torch.randn(1, 16, 9),), {}


def _seamless_fields() -> dict[str, object]:
    return {
        "hidden_size": 16,
        "vocab_size": 20,
        "t2u_vocab_size": 20,
        "unit_hifi_gan_vocab_size": 20,
        "unit_embed_dim": 12,
        "lang_embed_dim": 6,
        "spkr_embed_dim": 6,
        "vocoder_num_langs": 3,
        "vocoder_num_spkrs": 3,
        **HIFI_GAN,
    }


def _seamless_inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(4, 20, (1, 7)),
        "spkr_id": torch.tensor([[1]]),
        "lang_id": torch.tensor([[2]]),
    }


@seeded
def build_seamless_vocoder() -> Built:
    """SeamlessM4T's unit vocoder, whose output length depends on predicted durations."""
    from transformers import SeamlessM4TCodeHifiGan, SeamlessM4TConfig

    config = SeamlessM4TConfig(**_seamless_fields())
    return SeamlessM4TCodeHifiGan(config), (), _seamless_inputs()


@seeded
def build_seamless_hifigan() -> Built:
    """The HiFi-GAN inside SeamlessM4T's unit vocoder."""
    from transformers import SeamlessM4TCodeHifiGan, SeamlessM4TConfig

    model = SeamlessM4TCodeHifiGan(SeamlessM4TConfig(**_seamless_fields()))
    return model.hifi_gan, (torch.randn(1, 24, 9),), {}


@seeded
def build_seamless_v2_vocoder() -> Built:
    """SeamlessM4T v2's unit vocoder."""
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
        SeamlessM4Tv2CodeHifiGan,
    )

    config = SeamlessM4Tv2Config(**_seamless_fields())
    inputs = _seamless_inputs()
    inputs["speaker_id"] = inputs.pop("spkr_id")
    return SeamlessM4Tv2CodeHifiGan(config), (), inputs


def _big_vgan_fields() -> dict[str, object]:
    return {
        "mel_dim": 10,
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [3, 2],
        "upsample_kernel_sizes": [7, 4],
    }


@seeded
def build_qwen_big_vgan() -> Built:
    """Qwen2.5-Omni's BigVGAN: learned upsampling and fixed anti-aliasing filters."""
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
        Qwen2_5OmniBigVGANConfig,
    )
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniToken2WavBigVGANModel,
    )

    model = Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig(**_big_vgan_fields()))
    return model, (torch.randn(1, 10, 12),), {}


@seeded
def build_qwen_code_to_wave() -> Built:
    """Qwen3-Omni's causal code-to-waveform decoder."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeCode2WavConfig,
    )
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

    config = Qwen3OmniMoeCode2WavConfig(
        codebook_size=32,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        num_hidden_layers=1,
        num_quantizers=2,
        sliding_window=8,
        upsample_rates=[3, 2],
        upsampling_ratios=[2, 2],
        decoder_dim=16,
    )
    return Qwen3OmniMoeCode2Wav(config), (torch.randint(0, 32, (1, 2, 6)),), {}


@seeded
def build_xcodec() -> Built:
    """X-Codec, which sets the output padding of the decoder it borrows from DAC."""
    from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

    acoustic = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[8, 5, 4, 2],
        decoder_hidden_size=32,
        codebook_dim=16,
        hidden_size=64,
    )
    semantic = HubertConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    config = XcodecConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
        codebook_size=32,
        target_bandwidths=[0.5, 1.0],
    )
    return XcodecModel(config), (), {"input_values": torch.randn(1, 1, 3200)}


@seeded
def build_vibevoice_tokenizer() -> Built:
    """VibeVoice's causal acoustic tokenizer."""
    from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel

    config = VibeVoiceAcousticTokenizerConfig(
        hidden_size=8, num_filters=4, downsampling_ratios=[2, 3, 4], depths=[1, 1, 1, 1]
    )
    # Sampling would draw different noise at every call.
    inputs = {"input_values": torch.randn(1, 1, 480), "sample": False}
    return VibeVoiceAcousticTokenizerModel(config), (), inputs


TRANSFORMERS_AUDIO: tuple[ZooModel, ...] = (
    ZooModel(
        "encodec",
        "transformers",
        build_encodec,
        exports=False,
        note="the padding amount is a tensor, so torch.export meets a data-dependent guard",
    ),
    ZooModel(
        "encodec_stereo",
        "transformers",
        build_encodec_stereo,
        exports=False,
        note="the padding amount is a tensor, so torch.export meets a data-dependent guard",
    ),
    ZooModel("dac", "transformers", build_dac),
    ZooModel(
        "mimi",
        "transformers",
        build_mimi,
        exports=False,
        note="the padding amount is a tensor, so torch.export meets a data-dependent guard",
    ),
    ZooModel(
        "pocket_tts_tokenizer",
        "transformers",
        build_pocket_tts_tokenizer,
        exports=False,
        note="the padding amount is a tensor, so torch.export meets a data-dependent guard",
    ),
    ZooModel("speecht5_hifigan", "transformers", build_speecht5_hifigan),
    ZooModel("speecht5_hifigan_weight_norm", "transformers", build_speecht5_hifigan_weight_norm),
    ZooModel("fastspeech2_hifigan", "transformers", build_fastspeech2_hifigan),
    ZooModel("univnet", "transformers", build_univnet),
    ZooModel("vits", "transformers", build_vits),
    ZooModel("vits_decoder", "transformers", build_vits_decoder),
    ZooModel("seamless_vocoder", "transformers", build_seamless_vocoder),
    ZooModel("seamless_hifigan", "transformers", build_seamless_hifigan),
    ZooModel("seamless_v2_vocoder", "transformers", build_seamless_v2_vocoder),
    ZooModel("qwen_big_vgan", "transformers", build_qwen_big_vgan),
    ZooModel("qwen_code_to_wave", "transformers", build_qwen_code_to_wave),
    ZooModel("xcodec", "transformers", build_xcodec),
    ZooModel("vibevoice_tokenizer", "transformers", build_vibevoice_tokenizer),
)
