"""More dense prediction models and a few audio parts of the transformers package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .entry import Built, ZooModel, seeded

if TYPE_CHECKING:
    from transformers import Sapiens2Config, Tipsv2DptConfig


def _dinov3_fields() -> dict[str, object]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }


@seeded
def build_canopy_height() -> Built:
    """The canopy height model on DINOv3."""
    from transformers import CHMv2Config, CHMv2ForDepthEstimation, DINOv3ViTConfig

    backbone = DINOv3ViTConfig(
        **_dinov3_fields(), out_indices=[1, 2, 3, 4], return_class_token=True
    )
    config = CHMv2Config(
        backbone_config=backbone,
        patch_size=8,
        post_process_channels=[8, 8, 12, 12],
        fusion_hidden_size=8,
        head_hidden_size=8,
        number_output_channels=8,
    )
    return CHMv2ForDepthEstimation(config), (torch.randn(1, 3, 32, 32),), {}


def _tips_config() -> Tipsv2DptConfig:
    from transformers import Tipsv2DptConfig

    backbone = {
        "model_type": "tipsv2_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "image_size": 28,
        "patch_size": 7,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    }
    return Tipsv2DptConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 12, 12],
        fusion_hidden_size=8,
        num_depth_bins=8,
        num_labels=3,
    )


@seeded
def build_tips_depth() -> Built:
    """TIPS v2 with a depth head."""
    from transformers import Tipsv2DptForDepthEstimation

    return Tipsv2DptForDepthEstimation(_tips_config()), (torch.randn(1, 3, 28, 28),), {}


@seeded
def build_tips_segmentation() -> Built:
    """TIPS v2 with a segmentation head."""
    from transformers import Tipsv2DptForSemanticSegmentation

    return Tipsv2DptForSemanticSegmentation(_tips_config()), (torch.randn(1, 3, 28, 28),), {}


@seeded
def build_eomt_dinov3() -> Built:
    """Encoder-only mask transformer on DINOv3."""
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    config = EomtDinov3Config(
        **_dinov3_fields(), num_blocks=1, num_queries=4, num_register_tokens=1, num_labels=3
    )
    return EomtDinov3ForUniversalSegmentation(config), (torch.randn(1, 3, 32, 32),), {}


@seeded
def build_videomt() -> Built:
    """Encoder-only mask transformer for video."""
    from transformers import VideomtConfig, VideomtForUniversalSegmentation

    config = VideomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        mlp_ratio=1,
        num_blocks=1,
        num_queries=4,
        num_register_tokens=1,
        num_labels=3,
    )
    return VideomtForUniversalSegmentation(config), (torch.randn(1, 2, 3, 32, 32),), {}


def _sapiens_config() -> Sapiens2Config:
    from transformers import Sapiens2Config

    return Sapiens2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        num_first_full_attention_layers=1,
        num_last_full_attention_layers=1,
        image_size=[48, 32],
        patch_size=8,
        num_register_tokens=1,
        num_labels=4,
        head_config={"upsample_out_channels": [12, 8], "conv_out_channels": [8]},
    )


@seeded
def build_sapiens_pose() -> Built:
    """Sapiens 2 for pose."""
    from transformers import Sapiens2ForPoseEstimation

    return Sapiens2ForPoseEstimation(_sapiens_config()), (torch.randn(1, 3, 48, 32),), {}


@seeded
def build_sapiens_segmentation() -> Built:
    """Sapiens 2 for body parts."""
    from transformers import Sapiens2ForSemanticSegmentation

    return Sapiens2ForSemanticSegmentation(_sapiens_config()), (torch.randn(1, 3, 48, 32),), {}


@seeded
def build_ocr_mobile() -> Built:
    """PP-OCRv5's mobile text detector."""
    from transformers import PPOCRV5MobileDetConfig, PPOCRV5MobileDetForObjectDetection

    # Each block: kernel size, input channels, output channels, stride, squeeze and excite.
    blocks = [
        [[3, 8, 8, 1, False]],
        [[3, 8, 8, 2, False]],
        [[3, 8, 16, 2, False]],
        [[3, 16, 16, 2, False]],
        [[5, 16, 16, 2, True]],
    ]
    backbone = {
        "model_type": "pp_lcnet_v3",
        "stem_channels": 8,
        "block_configs": blocks,
        "out_features": ["stage2", "stage3", "stage4", "stage5"],
    }
    config = PPOCRV5MobileDetConfig(
        backbone_config=backbone, neck_out_channels=16, layer_list_out_channels=[8, 8, 12, 12]
    )
    return PPOCRV5MobileDetForObjectDetection(config), (torch.randn(1, 3, 64, 64),), {}


def _text_shapes() -> dict[str, list[object]]:
    shapes: dict[str, list[object]] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for ratio, size in (("long", 7), ("mid", 5), ("short", 3)):
        half = size // 2
        shapes[f"vertical_long_to_small_conv_{ratio}ratio"] = [[size, 1], 1, [half, 0]]
        shapes[f"horizontal_small_to_long_conv_{ratio}ratio"] = [[1, size], 1, [0, half]]
        shapes[f"symmetric_conv_long_{ratio}ratio"] = [size, 1, half]
    return shapes


@seeded
def build_ocr_server() -> Built:
    """PP-OCRv5's server text detector."""
    from transformers import PPOCRV5ServerDetConfig, PPOCRV5ServerDetForObjectDetection

    backbone = {
        "model_type": "hgnet_v2",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 12, 12],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 8, 12],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 8, 12, 12],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = PPOCRV5ServerDetConfig(
        backbone_config=backbone,
        neck_out_channels=16,
        intraclass_block_config=_text_shapes(),
        scale_factor_list=[1, 2, 4, 8],
        kernel_list=[3, 2, 2],
    )
    return PPOCRV5ServerDetForObjectDetection(config), (torch.randn(1, 3, 64, 64),), {}


@seeded
def build_sam3_vision() -> Built:
    """The vision encoder of Segment Anything 3 with its feature pyramid."""
    from transformers import Sam3VisionConfig, Sam3VisionModel

    config = Sam3VisionConfig(
        backbone_config={
            "model_type": "sam3_vit_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        fpn_hidden_size=8,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    return Sam3VisionModel(config), (torch.randn(1, 3, 56, 56),), {}


@seeded
def build_word_timestamps() -> Built:
    """The word timestamp head of Nemotron 3.5 Transcribe."""
    from transformers.models.nemotron3_5_transcribe.configuration_nemotron3_5_transcribe import (
        Nemotron3_5TranscribeWordTimestampConfig,
    )
    from transformers.models.nemotron3_5_transcribe.modeling_nemotron3_5_transcribe import (
        Nemotron3_5TranscribeWordTimestampModel,
    )

    config = Nemotron3_5TranscribeWordTimestampConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=20,
        blank_token_id=19,
        upsampling_factor=2,
    )
    model = Nemotron3_5TranscribeWordTimestampModel(config)
    return model, (), {"inputs_embeds": torch.randn(1, 9, 16)}


@seeded
def build_xcodec2_encoder() -> Built:
    """The acoustic encoder of X-Codec 2, whose activations are anti-aliased."""
    from transformers.models.xcodec2.configuration_xcodec2 import Xcodec2Config
    from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Encoder

    config = Xcodec2Config(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=2,
        encoder_hidden_size=4,
        downsampling_ratios=[2, 5],
    )
    return Xcodec2Encoder(config), (torch.randn(1, 1, 120),), {}


TRANSFORMERS_DENSE: tuple[ZooModel, ...] = (
    ZooModel("canopy_height", "transformers", build_canopy_height),
    ZooModel("tips_depth", "transformers", build_tips_depth),
    ZooModel("tips_segmentation", "transformers", build_tips_segmentation),
    ZooModel(
        "eomt_dinov3",
        "transformers",
        build_eomt_dinov3,
        exports=False,
        note="attention masking depends on the values of a buffer",
    ),
    ZooModel("videomt", "transformers", build_videomt),
    ZooModel("sapiens_pose", "transformers", build_sapiens_pose),
    ZooModel("sapiens_segmentation", "transformers", build_sapiens_segmentation),
    ZooModel("ocr_mobile", "transformers", build_ocr_mobile),
    ZooModel("ocr_server", "transformers", build_ocr_server),
    ZooModel("sam3_vision", "transformers", build_sam3_vision),
    ZooModel("word_timestamps", "transformers", build_word_timestamps),
    ZooModel("xcodec2_encoder", "transformers", build_xcodec2_encoder),
)
