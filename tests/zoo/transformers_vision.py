"""Depth, pose, detection and segmentation models of the transformers package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .entry import Built, ZooModel, seeded

if TYPE_CHECKING:
    from transformers import Dinov2Config, DPTConfig, VitPoseConfig


def _vision_fields(image_size: int = 32, patch_size: int = 8) -> dict[str, object]:
    return {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def _depth_fields() -> dict[str, object]:
    return {"neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 12}


def _dpt_config() -> DPTConfig:
    from transformers import DPTConfig

    return DPTConfig(
        **_vision_fields(), **_depth_fields(), backbone_out_indices=[0, 1, 2, 3], num_labels=3
    )


@seeded
def build_dpt_depth() -> Built:
    """DPT for depth."""
    from transformers import DPTForDepthEstimation

    return DPTForDepthEstimation(_dpt_config()), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_dpt_segmentation() -> Built:
    """DPT for segmentation, with its auxiliary head."""
    from transformers import DPTForSemanticSegmentation

    return DPTForSemanticSegmentation(_dpt_config()), (torch.randn(1, 3, 32, 32),), {}


def _dinov2_config() -> Dinov2Config:
    from transformers import Dinov2Config

    return Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )


@seeded
def build_depth_anything() -> Built:
    """Depth Anything on DINOv2."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    config = DepthAnythingConfig(
        backbone_config=_dinov2_config(),
        reassemble_hidden_size=24,
        head_hidden_size=8,
        **_depth_fields(),
    )
    return DepthAnythingForDepthEstimation(config), (torch.randn(1, 3, 28, 42),), {}


@seeded
def build_prompt_depth_anything() -> Built:
    """Depth Anything prompted with a coarse depth map."""
    from transformers import PromptDepthAnythingConfig, PromptDepthAnythingForDepthEstimation

    config = PromptDepthAnythingConfig(
        backbone_config=_dinov2_config(),
        reassemble_hidden_size=24,
        head_hidden_size=8,
        **_depth_fields(),
    )
    inputs = {
        "pixel_values": torch.randn(1, 3, 28, 28),
        "prompt_depth": torch.rand(1, 1, 10, 10),
    }
    return PromptDepthAnythingForDepthEstimation(config), (), inputs


@seeded
def build_zoedepth() -> Built:
    """ZoeDepth on BEiT, with metric bins."""
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

    backbone = BeitConfig(**_vision_fields(), out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    config = ZoeDepthConfig(
        backbone_config=backbone,
        **_depth_fields(),
        bottleneck_features=12,
        num_relative_features=8,
        num_attractors=[4, 2, 2, 1],
        bin_embedding_dim=8,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
    )
    return ZoeDepthForDepthEstimation(config), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_depth_pro() -> Built:
    """Depth Pro with its field-of-view head."""
    from transformers import DepthProConfig, DepthProForDepthEstimation

    encoder = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "image_size": 16,
        "patch_size": 4,
    }
    config = DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 12],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 16],
        image_model_config=encoder,
        patch_model_config=encoder,
        fov_model_config=encoder,
        use_fov_model=True,
    )
    return DepthProForDepthEstimation(config), (torch.randn(1, 3, 32, 32),), {}


def _vitpose_config(use_simple_decoder: bool) -> VitPoseConfig:
    from transformers import VitPoseConfig

    backbone = {
        "model_type": "vitpose_backbone",
        "image_size": [64, 48],
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "out_indices": [2],
    }
    return VitPoseConfig(
        backbone_config=backbone, use_simple_decoder=use_simple_decoder, num_labels=5
    )


@seeded
def build_vitpose() -> Built:
    """ViTPose with its classic decoder; the simple one interpolates instead."""
    from transformers import VitPoseForPoseEstimation

    model = VitPoseForPoseEstimation(_vitpose_config(use_simple_decoder=False))
    return model, (torch.randn(1, 3, 64, 48),), {}


@seeded
def build_beit_segmentation() -> Built:
    """BEiT with UperNet's feature pyramid."""
    from transformers import BeitConfig, BeitForSemanticSegmentation

    config = BeitConfig(
        **_vision_fields(),
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        auxiliary_channels=8,
        num_labels=3,
    )
    return BeitForSemanticSegmentation(config), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_beit_backbone() -> Built:
    """BEiT as a backbone with its own pyramid."""
    from transformers import BeitBackbone, BeitConfig

    config = BeitConfig(**_vision_fields(), out_indices=[1, 2, 3, 4], add_fpn=True)
    return BeitBackbone(config), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_data2vec_segmentation() -> Built:
    """Data2Vec vision with UperNet."""
    from transformers import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation

    config = Data2VecVisionConfig(
        **_vision_fields(),
        out_indices=[0, 1, 2, 3],
        pool_scales=[1, 2],
        auxiliary_channels=8,
        num_labels=3,
    )
    return Data2VecVisionForSemanticSegmentation(config), (torch.randn(1, 3, 32, 32),), {}


def _clipseg(complex_decoder: bool) -> Built:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(
        text_config={
            "vocab_size": 50,
            "hidden_size": 24,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "eos_token_id": 49,
        },
        vision_config=_vision_fields(),
        projection_dim=16,
        extract_layers=[1, 2, 3],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
        use_complex_transposed_convolution=complex_decoder,
    )
    inputs = {
        "input_ids": torch.tensor([[1, 7, 9, 49]]),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    return CLIPSegForImageSegmentation(config), (), inputs


@seeded
def build_clipseg() -> Built:
    """CLIPSeg, one transposed convolution from tokens to mask."""
    return _clipseg(complex_decoder=False)


@seeded
def build_clipseg_refined() -> Built:
    """CLIPSeg with the two-step decoder."""
    return _clipseg(complex_decoder=True)


@seeded
def build_eomt() -> Built:
    """Encoder-only mask transformer."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    fields = _vision_fields()
    del fields["intermediate_size"]
    config = EomtConfig(
        **fields, mlp_ratio=1, num_blocks=1, num_queries=4, num_register_tokens=1, num_labels=3
    )
    return EomtForUniversalSegmentation(config), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_lw_detr() -> Built:
    """LW-DETR with an upsampling projector."""
    from transformers import LwDetrConfig, LwDetrForObjectDetection

    backbone = {
        "model_type": "lw_detr_vit",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "image_size": 64,
        "pretrain_image_size": 64,
        "window_block_indices": [0],
        "num_windows": 4,
        "out_indices": [1, 2],
    }
    config = LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=[2.0],
        c2f_num_blocks=1,
        decoder_ffn_dim=24,
        decoder_layers=1,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=5,
        group_detr=2,
        d_model=16,
        num_labels=3,
    )
    return LwDetrForObjectDetection(config), (torch.randn(1, 3, 64, 64),), {}


TRANSFORMERS_VISION: tuple[ZooModel, ...] = (
    ZooModel("dpt_depth", "transformers", build_dpt_depth),
    ZooModel("dpt_segmentation", "transformers", build_dpt_segmentation),
    ZooModel("depth_anything", "transformers", build_depth_anything),
    ZooModel("prompt_depth_anything", "transformers", build_prompt_depth_anything),
    ZooModel("zoedepth", "transformers", build_zoedepth),
    ZooModel("depth_pro", "transformers", build_depth_pro),
    ZooModel("vitpose", "transformers", build_vitpose),
    ZooModel("beit_segmentation", "transformers", build_beit_segmentation),
    ZooModel("beit_backbone", "transformers", build_beit_backbone),
    ZooModel("data2vec_segmentation", "transformers", build_data2vec_segmentation),
    ZooModel("clipseg", "transformers", build_clipseg),
    ZooModel("clipseg_refined", "transformers", build_clipseg_refined),
    ZooModel(
        "eomt",
        "transformers",
        build_eomt,
        exports=False,
        note="attention masking depends on the values of a buffer",
    ),
    ZooModel("lw_detr", "transformers", build_lw_detr),
)
