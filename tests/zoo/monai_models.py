"""Segmentation and generation networks of the monai package."""

from __future__ import annotations

import torch

from .entry import Built, ZooModel, seeded


@seeded
def build_unet_2d() -> Built:
    """Two-dimensional residual UNet."""
    from monai.networks.nets import UNet

    model = UNet(2, 1, 3, channels=(4, 8, 12), strides=(2, 2), num_res_units=2)
    return model, (torch.randn(1, 1, 24, 20),), {}


@seeded
def build_unet_3d() -> Built:
    """Three-dimensional UNet with anisotropic and odd strides."""
    from monai.networks.nets import UNet

    model = UNet(
        3, 1, 2, channels=(4, 6, 8, 8), strides=((2, 2, 1), 3, 1), up_kernel_size=(5, 3, 3)
    )
    return model, (torch.randn(1, 1, 12, 18, 9),), {}


@seeded
def build_dynunet_2d() -> Built:
    """nnU-Net style network with deep supervision heads."""
    from monai.networks.nets import DynUNet

    model = DynUNet(
        2,
        1,
        2,
        kernel_size=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
        filters=[4, 6, 8, 10],
        deep_supervision=True,
        deep_supr_num=1,
    )
    return model, (torch.randn(1, 1, 32, 24),), {}


@seeded
def build_dynunet_3d() -> Built:
    """nnU-Net style network with anisotropic kernels and biased transposed convolutions."""
    from monai.networks.nets import DynUNet

    model = DynUNet(
        3,
        2,
        3,
        kernel_size=[[1, 3, 3], 3, 3],
        strides=[1, [1, 2, 2], 2],
        upsample_kernel_size=[[1, 2, 2], 2],
        filters=[4, 6, 8],
        res_block=True,
        trans_bias=True,
    )
    return model, (torch.randn(1, 2, 6, 16, 16),), {}


@seeded
def build_vnet() -> Built:
    """VNet."""
    from monai.networks.nets import VNet

    return VNet(2, 1, 2, dropout_dim=2), (torch.randn(1, 1, 32, 32),), {}


@seeded
def build_attention_unet() -> Built:
    """UNet with attention gates."""
    from monai.networks.nets import AttentionUnet

    model = AttentionUnet(2, 1, 2, channels=(4, 8, 12), strides=(2, 2))
    return model, (torch.randn(1, 1, 24, 16),), {}


@seeded
def build_segresnet() -> Built:
    """SegResNet with learned upsampling."""
    from monai.networks.nets import SegResNet

    model = SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="deconv")
    return model, (torch.randn(1, 1, 12, 16, 8),), {}


@seeded
def build_segresnet_vae() -> Built:
    """SegResNet with its regularising branch."""
    from monai.networks.nets import SegResNetVAE

    model = SegResNetVAE(
        (16, 16),
        vae_estimate_std=False,
        vae_nz=8,
        spatial_dims=2,
        init_filters=8,
        blocks_down=(1, 1, 1, 1),
        upsample_mode="deconv",
    )
    return model, (torch.randn(1, 1, 16, 16),), {}


@seeded
def build_segresnet_ds() -> Built:
    """SegResNet with deep supervision and anisotropic resolution."""
    from monai.networks.nets import SegResNetDS

    model = SegResNetDS(3, 4, 1, 2, blocks_down=(1, 1, 1), dsdepth=2, resolution=(1.0, 1.0, 2.0))
    return model, (torch.randn(1, 1, 16, 16, 8),), {}


@seeded
def build_unetr() -> Built:
    """UNETR."""
    from monai.networks.nets import UNETR

    model = UNETR(
        1, 2, (32, 32), feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2, spatial_dims=2
    )
    return model, (torch.randn(1, 1, 32, 32),), {}


@seeded
def build_unetr_3d() -> Built:
    """UNETR on a volume, without residual blocks."""
    from monai.networks.nets import UNETR

    model = UNETR(
        1,
        2,
        (16, 32, 16),
        feature_size=2,
        hidden_size=12,
        mlp_dim=16,
        num_heads=2,
        conv_block=False,
        res_block=False,
    )
    return model, (torch.randn(1, 1, 16, 32, 16),), {}


@seeded
def build_swin_unetr() -> Built:
    """SwinUNETR."""
    from monai.networks.nets import SwinUNETR

    model = SwinUNETR(
        1,
        2,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=4,
        feature_size=12,
        spatial_dims=2,
    )
    return model, (torch.randn(1, 1, 64, 64),), {}


@seeded
def build_flexible_unet() -> Built:
    """FlexibleUNet on the smallest ResNet with learned upsampling."""
    from monai.networks.nets import FlexibleUNet

    model = FlexibleUNet(3, 2, "resnet10", decoder_channels=(16, 12, 8, 8, 4), upsample="deconv")
    return model, (torch.randn(1, 3, 32, 64),), {}


@seeded
def build_basic_unet() -> Built:
    """BasicUNet, whose decoder pads odd sizes."""
    from monai.networks.nets import BasicUNet

    model = BasicUNet(2, 1, 2, features=(4, 4, 6, 8, 10, 4), upsample="deconv")
    return model, (torch.randn(1, 1, 33, 26),), {}


@seeded
def build_basic_unet_1d() -> Built:
    """BasicUNet on a signal."""
    from monai.networks.nets import BasicUNet

    model = BasicUNet(1, 1, 2, features=(4, 4, 6, 8, 10, 4), upsample="deconv")
    return model, (torch.randn(1, 1, 64),), {}


@seeded
def build_basic_unet_plus_plus() -> Built:
    """Nested UNet with four outputs."""
    from monai.networks.nets import BasicUNetPlusPlus

    model = BasicUNetPlusPlus(
        2, 1, 2, features=(4, 4, 6, 6, 8, 4), deep_supervision=True, upsample="deconv"
    )
    return model, (torch.randn(1, 1, 32, 32),), {}


@seeded
def build_autoencoder() -> Built:
    """AutoEncoder with dilated intermediate blocks."""
    from monai.networks.nets import AutoEncoder

    model = AutoEncoder(
        2,
        1,
        1,
        channels=(4, 6, 8),
        strides=(2, 3, 2),
        kernel_size=(3, 5),
        up_kernel_size=(3, 5),
        inter_channels=[8],
        inter_dilations=[2],
    )
    return model, (torch.randn(1, 1, 24, 36),), {}


@seeded
def build_autoencoder_1d() -> Built:
    """AutoEncoder on a signal with residual units."""
    from monai.networks.nets import AutoEncoder

    model = AutoEncoder(1, 2, 2, channels=(4, 6), strides=(4, 2), num_res_units=1)
    return model, (torch.randn(2, 2, 40),), {}


@seeded
def build_variational_autoencoder() -> Built:
    """VarAutoEncoder decoding the mean."""
    from monai.networks.nets import VarAutoEncoder

    model = VarAutoEncoder(
        2,
        (1, 16, 16),
        1,
        latent_size=4,
        channels=(4, 8),
        strides=(2, 2),
        # Sampling would draw different noise at every call.
        use_mean_at_inference=True,
    )
    return model, (torch.randn(2, 1, 16, 16),), {}


@seeded
def build_generator() -> Built:
    """Generator of an adversarial network."""
    from monai.networks.nets import Generator

    model = Generator((6,), (8, 4, 3), channels=(8, 6, 1), strides=(2, 3, 1))
    return model, (torch.randn(2, 6),), {}


@seeded
def build_local_net() -> Built:
    """Registration network adding an interpolation to each transposed convolution."""
    from monai.networks.nets import LocalNet

    return LocalNet(2, 2, 4, extract_levels=(0, 1, 2)), (torch.randn(1, 2, 16, 16),), {}


@seeded
def build_vit_autoencoder() -> Built:
    """Vision transformer decoded by two transposed convolutions."""
    from monai.networks.nets import ViTAutoEnc

    model = ViTAutoEnc(
        1,
        (16, 16),
        4,
        deconv_chns=4,
        hidden_size=12,
        mlp_dim=16,
        num_layers=1,
        num_heads=2,
        spatial_dims=2,
    )
    return model, (torch.randn(1, 1, 16, 16),), {}


@seeded
def build_vqvae() -> Built:
    """Vector-quantised autoencoder with output padding."""
    from monai.networks.nets import VQVAE

    model = VQVAE(
        2,
        1,
        1,
        channels=(4, 8),
        num_res_layers=1,
        num_res_channels=(4, 8),
        downsample_parameters=((2, 4, 1, 1), (2, 3, 1, 1)),
        upsample_parameters=((2, 3, 1, 1, 1), (2, 4, 1, 1, 0)),
        num_embeddings=8,
        embedding_dim=4,
    )
    return model, (torch.randn(1, 1, 16, 24),), {}


@seeded
def build_mednext() -> Built:
    """MedNeXt, whose depthwise transposed convolutions lose one border."""
    from monai.networks.nets import MedNeXt

    model = MedNeXt(
        2,
        4,
        1,
        2,
        kernel_size=3,
        use_residual_connection=True,
        blocks_down=(1, 1, 1, 1),
        blocks_bottleneck=1,
        blocks_up=(1, 1, 1, 1),
    )
    return model, (torch.randn(1, 1, 32, 32),), {}


@seeded
def build_autoencoder_kl() -> Built:
    """The autoencoder of latent diffusion with learned upsampling."""
    from monai.networks.nets import AutoencoderKL

    model = AutoencoderKL(
        2,
        num_res_blocks=(1, 1),
        channels=(4, 8),
        attention_levels=(False, False),
        latent_channels=2,
        norm_num_groups=2,
        use_convtranspose=True,
    )
    # The whole forward draws noise at every call; the decoder alone does not.
    return model.decoder, (torch.randn(1, 2, 8, 10),), {}


@seeded
def build_vista_point_head() -> Built:
    """The point prompt head of VISTA3D."""
    from monai.networks.nets.vista3d import PointMappingSAM

    model = PointMappingSAM(feature_size=16, n_classes=8, last_supported=4)
    points = torch.randint(0, 8, (2, 3, 3))
    labels = torch.tensor([[1, 0, 1], [0, 1, -1]])
    return model, (torch.randn(1, 16, 8, 8, 8), points, labels), {}


MONAI: tuple[ZooModel, ...] = (
    ZooModel("monai_unet_2d", "monai", build_unet_2d),
    ZooModel("monai_unet_3d", "monai", build_unet_3d),
    ZooModel("monai_dynunet_2d", "monai", build_dynunet_2d),
    ZooModel("monai_dynunet_3d", "monai", build_dynunet_3d),
    ZooModel("monai_vnet", "monai", build_vnet),
    ZooModel("monai_attention_unet", "monai", build_attention_unet),
    ZooModel("monai_segresnet", "monai", build_segresnet),
    ZooModel("monai_segresnet_vae", "monai", build_segresnet_vae),
    ZooModel("monai_segresnet_ds", "monai", build_segresnet_ds),
    ZooModel("monai_unetr", "monai", build_unetr),
    ZooModel("monai_unetr_3d", "monai", build_unetr_3d),
    ZooModel("monai_swin_unetr", "monai", build_swin_unetr),
    ZooModel("monai_flexible_unet", "monai", build_flexible_unet),
    ZooModel("monai_basic_unet", "monai", build_basic_unet),
    ZooModel("monai_basic_unet_1d", "monai", build_basic_unet_1d),
    ZooModel("monai_basic_unet_plus_plus", "monai", build_basic_unet_plus_plus),
    ZooModel("monai_autoencoder", "monai", build_autoencoder),
    ZooModel("monai_autoencoder_1d", "monai", build_autoencoder_1d),
    ZooModel("monai_variational_autoencoder", "monai", build_variational_autoencoder),
    ZooModel("monai_generator", "monai", build_generator),
    ZooModel("monai_local_net", "monai", build_local_net),
    ZooModel("monai_vit_autoencoder", "monai", build_vit_autoencoder),
    ZooModel("monai_vqvae", "monai", build_vqvae),
    ZooModel("monai_mednext", "monai", build_mednext),
    ZooModel("monai_autoencoder_kl", "monai", build_autoencoder_kl),
    ZooModel("monai_vista_point_head", "monai", build_vista_point_head),
)
