"""Audio autoencoders, vocoders and denoisers of the diffusers package."""

from __future__ import annotations

import torch

from .entry import Built, ZooModel, seeded


@seeded
def build_oobleck() -> Built:
    """The autoencoder of Stable Audio; its forward takes the mode of the posterior."""
    from diffusers import AutoencoderOobleck

    model = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 3, 4],
        channel_multiples=[1, 2, 2],
        decoder_channels=4,
        decoder_input_channels=2,
        audio_channels=2,
    )
    return model, (torch.randn(1, 2, 240),), {}


@seeded
def build_longcat_vae() -> Built:
    """LongCat's audio autoencoder with shortcuts around each upsampling."""
    from diffusers.models.autoencoders.autoencoder_longcat_audio_dit import LongCatAudioDiTVae

    model = LongCatAudioDiTVae(
        channels=4,
        c_mults=[1, 2],
        strides=[2, 4],
        latent_dim=4,
        encoder_latent_dim=8,
        downsampling_ratio=8,
        use_snake=True,
    )
    return model, (torch.randn(1, 1, 160),), {}


@seeded
def build_music_vocoder() -> Built:
    """MiniMax Music's vocoder."""
    from diffusers.models.autoencoders.minimax_music3_vocoder import MiniMaxMusic3Vocoder

    model = MiniMaxMusic3Vocoder(
        latent_channels=6, decoder_input_dim=8, decoder_hidden_dim=16, upsampling_ratios=(4, 3, 2)
    )
    return model, (torch.randn(1, 6, 9),), {}


@seeded
def build_kvae_audio() -> Built:
    """The audio autoencoder of Kandinsky; its forward takes the mode of the posterior."""
    from diffusers.models.autoencoders.autoencoder_kl_kvae_audio import AutoencoderKLKVAEAudio

    model = AutoencoderKLKVAEAudio(
        encoder_dim=4,
        encoder_rates=[2, 3, 5],
        latent_dim=16,
        codebook_dim=4,
        decoder_dim=16,
        decoder_rates=[5, 3, 2],
        attn_num_heads=2,
    )
    return model, (torch.randn(1, 1, 240),), {}


@seeded
def build_mmaudio_vocoder() -> Built:
    """MMAudio's BigVGAN."""
    from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder

    model = MMAudioVocoder(
        num_mels=6,
        upsample_initial_channel=16,
        upsample_rates=(4, 2),
        upsample_kernel_sizes=(8, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    return model, (torch.randn(1, 6, 9),), {}


@seeded
def build_minimax_audio() -> Built:
    """MiniMax's audio autoencoder."""
    from diffusers.models.autoencoders.autoencoder_kl_minimax_h3_audio import (
        AutoencoderKLMiniMaxH3Audio,
    )

    model = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        encoder_rates=(2, 5),
        latent_dim=16,
        latent_channels=4,
        num_attention_heads=2,
        decoder_dim=16,
        decoder_rates=(5, 2),
        decoder_kernel_sizes=(9, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return model, (torch.randn(1, 1, 200),), {}


def _ltx_fields() -> dict[str, object]:
    return {
        "in_channels": 8,
        "hidden_channels": 16,
        "upsample_kernel_sizes": [15, 8],
        "upsample_factors": [5, 4],
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3]],
    }


@seeded
def build_ltx_vocoder() -> Built:
    """LTX-2's stereo vocoder."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return LTX2Vocoder(**_ltx_fields()), (torch.randn(1, 2, 9, 4),), {}


@seeded
def build_ltx_anti_aliased_vocoder() -> Built:
    """LTX-2's vocoder with anti-aliased activations."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    model = LTX2Vocoder(**_ltx_fields(), act_fn="snakebeta", antialias=True)
    return model, (torch.randn(1, 2, 9, 4),), {}


@seeded
def build_cosmos_audio_decoder() -> Built:
    """Cosmos 3's audio decoder."""
    from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AudioDecoder

    model = Cosmos3AudioDecoder(
        channels=4,
        input_channels=6,
        audio_channels=2,
        upsampling_ratios=[5, 3, 2],
        channel_multiples=[1, 2, 2],
    )
    return model, (torch.randn(1, 6, 8),), {}


@seeded
def build_cosmos_video() -> Built:
    """Cosmos's video autoencoder, which undoes wavelets by transposed convolution."""
    from diffusers import AutoencoderKLCosmos

    model = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    )
    return model, (torch.randn(1, 3, 9, 32, 32),), {}


@seeded
def build_paella() -> Built:
    """The vector-quantised autoencoder of Wuerstchen."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    model = PaellaVQModel(bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16)
    return model, (torch.randn(1, 3, 16, 24),), {}


@seeded
def build_wuerstchen() -> Built:
    """Wuerstchen's denoiser."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import (
        WuerstchenDiffNeXt,
    )

    model = WuerstchenDiffNeXt(
        c_r=8,
        c_cond=8,
        c_hidden=[8, 12],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=8,
    )
    inputs = {
        "x": torch.randn(1, 4, 16, 16),
        "r": torch.tensor([0.5]),
        "effnet": torch.randn(1, 4, 4, 4),
        "clip": torch.randn(1, 3, 8),
    }
    return model, (), inputs


@seeded
def build_stable_cascade() -> Built:
    """Stable Cascade's denoiser with learned upsampling."""
    from diffusers.models import StableCascadeUNet

    model = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        patch_size=2,
        conditioning_dim=8,
        block_out_channels=(8, 12),
        num_attention_heads=(0, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=8,
        timestep_conditioning_type=("sca",),
        effnet_in_channels=4,
    )
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep_ratio": torch.tensor([0.5]),
        "clip_text_pooled": torch.randn(1, 1, 8),
        "effnet": torch.randn(1, 4, 4, 4),
    }
    return model, (), inputs


@seeded
def build_kandinsky() -> Built:
    """Kandinsky 3's denoiser, which upsamples inside residual blocks."""
    from diffusers import Kandinsky3UNet

    model = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16, 32, 64),
        cross_attention_dim=8,
        encoder_hid_dim=8,
    )
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "encoder_attention_mask": torch.ones(1, 3),
    }
    return model, (), inputs


@seeded
def build_uvit() -> Built:
    """aMUSEd's masked image transformer."""
    from diffusers import UVit2DModel

    model = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=8,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=8,
        vocab_size=20,
        codebook_size=16,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        sample_size=8,
    )
    inputs = {
        "input_ids": torch.randint(0, 16, (1, 8, 8)),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "pooled_text_emb": torch.randn(1, 8),
        "micro_conds": torch.tensor([[8.0, 8.0, 0.0, 0.0, 6.0]]),
    }
    return model, (), inputs


@seeded
def build_dance_diffusion() -> Built:
    """Dance Diffusion's waveform denoiser with cubic resampling."""
    from diffusers import UNet1DModel

    model = UNet1DModel(
        sample_size=64,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        block_out_channels=(32, 32, 32),
    )
    return model, (torch.randn(1, 2, 64), torch.tensor([3])), {}


@seeded
def build_planning_unet() -> Built:
    """Diffuser's trajectory denoiser with learned upsampling."""
    from diffusers import UNet1DModel

    model = UNet1DModel(
        sample_size=16,
        in_channels=6,
        out_channels=6,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        block_out_channels=(8, 16),
        act_fn="swish",
    )
    return model, (torch.randn(1, 6, 16), torch.tensor([3])), {}


@seeded
def build_ace_step() -> Built:
    """ACE-Step's music transformer, unpatched by a transposed convolution."""
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel

    model = AceStepTransformer1DModel(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=8,
    )
    inputs = {
        "hidden_states": torch.randn(1, 10, 4),
        "timestep": torch.tensor([0.5]),
        "timestep_r": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "context_latents": torch.randn(1, 10, 8),
    }
    return model, (), inputs


DIFFUSERS: tuple[ZooModel, ...] = (
    ZooModel("oobleck", "diffusers", build_oobleck),
    ZooModel("longcat_vae", "diffusers", build_longcat_vae),
    ZooModel("music_vocoder", "diffusers", build_music_vocoder),
    ZooModel("kvae_audio", "diffusers", build_kvae_audio),
    ZooModel("mmaudio_vocoder", "diffusers", build_mmaudio_vocoder),
    ZooModel("minimax_audio", "diffusers", build_minimax_audio),
    ZooModel("ltx_vocoder", "diffusers", build_ltx_vocoder),
    ZooModel("ltx_anti_aliased_vocoder", "diffusers", build_ltx_anti_aliased_vocoder),
    ZooModel("cosmos_audio_decoder", "diffusers", build_cosmos_audio_decoder),
    ZooModel("cosmos_video", "diffusers", build_cosmos_video),
    ZooModel("paella", "diffusers", build_paella),
    ZooModel("wuerstchen", "diffusers", build_wuerstchen),
    ZooModel("stable_cascade", "diffusers", build_stable_cascade),
    ZooModel("kandinsky", "diffusers", build_kandinsky),
    ZooModel("uvit", "diffusers", build_uvit),
    ZooModel("dance_diffusion", "diffusers", build_dance_diffusion),
    ZooModel("planning_unet", "diffusers", build_planning_unet),
    ZooModel("ace_step", "diffusers", build_ace_step),
)
