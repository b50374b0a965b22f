"""The Segment Anything family in the transformers package."""

from __future__ import annotations

import torch

from .entry import Built, ZooModel, seeded


def _sam_fields() -> dict[str, dict[str, object]]:
    return {
        "vision_config": {
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 24,
            "initializer_range": 0.02,
        },
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": 16,
            "mlp_dim": 24,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    }


def _sam_inputs(size: int = 64) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(1, 3, size, size),
        "input_points": torch.tensor([[[[20.0, 30.0], [40.0, 10.0]]]]),
        "input_labels": torch.tensor([[[1, 0]]]),
    }


@seeded
def build_sam() -> Built:
    """Segment Anything from image and points to masks."""
    from transformers import SamConfig, SamModel

    return SamModel(SamConfig(**_sam_fields())), (), _sam_inputs()


@seeded
def build_sam_mask_decoder() -> Built:
    """Segment Anything's mask decoder alone."""
    from transformers import SamConfig, SamModel

    inputs = {
        "image_embeddings": torch.randn(1, 16, 4, 4),
        "image_positional_embeddings": torch.randn(1, 16, 4, 4),
        "sparse_prompt_embeddings": torch.randn(1, 1, 2, 16),
        "dense_prompt_embeddings": torch.randn(1, 16, 4, 4),
        "multimask_output": True,
    }
    return SamModel(SamConfig(**_sam_fields())).mask_decoder, (), inputs


@seeded
def build_sam_hq() -> Built:
    """High-quality Segment Anything, with extra mask features."""
    from transformers import SamHQConfig, SamHQModel

    fields = _sam_fields()
    fields["mask_decoder_config"]["vit_dim"] = 24
    return SamHQModel(SamHQConfig(**fields)), (), _sam_inputs()


def _tracker_fields() -> dict[str, dict[str, object]]:
    return {
        "prompt_encoder_config": {
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 24,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    }


@seeded
def build_sam2() -> Built:
    """Segment Anything 2 with a two-stage Hiera."""
    from transformers import Sam2Config, Sam2Model

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "window_positional_embedding_background_size": [2, 2],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    model = Sam2Model(Sam2Config(vision_config=vision, **_tracker_fields()))
    return model, (), _sam_inputs()


def _mask_decoder_inputs() -> dict[str, object]:
    return {
        "image_embeddings": torch.randn(1, 32, 4, 4),
        "image_positional_embeddings": torch.randn(1, 32, 4, 4),
        "sparse_prompt_embeddings": torch.randn(1, 1, 2, 32),
        "dense_prompt_embeddings": torch.randn(1, 32, 4, 4),
        "multimask_output": True,
        "high_resolution_features": [torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8)],
    }


@seeded
def build_edgetam_mask_decoder() -> Built:
    """EdgeTAM's mask decoder, whose backbone would need another package."""
    from transformers.models.edgetam.configuration_edgetam import EdgeTamMaskDecoderConfig
    from transformers.models.edgetam.modeling_edgetam import EdgeTamMaskDecoder

    config = EdgeTamMaskDecoderConfig(**_tracker_fields()["mask_decoder_config"])
    return EdgeTamMaskDecoder(config), (), _mask_decoder_inputs()


@seeded
def build_sam3_tracker_mask_decoder() -> Built:
    """The mask decoder of Segment Anything 3's tracker."""
    from transformers.models.sam3_tracker.configuration_sam3_tracker import (
        Sam3TrackerMaskDecoderConfig,
    )
    from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerMaskDecoder

    config = Sam3TrackerMaskDecoderConfig(**_tracker_fields()["mask_decoder_config"])
    return Sam3TrackerMaskDecoder(config), (), _mask_decoder_inputs()


TRANSFORMERS_MASKS: tuple[ZooModel, ...] = (
    ZooModel(
        "sam",
        "transformers",
        build_sam,
        exports=False,
        note="a view in the global attention fails in torch.onnx's decompositions",
    ),
    ZooModel("sam_mask_decoder", "transformers", build_sam_mask_decoder),
    ZooModel(
        "sam_hq",
        "transformers",
        build_sam_hq,
        exports=False,
        note="a view in the global attention fails in torch.onnx's decompositions",
    ),
    ZooModel("sam2", "transformers", build_sam2),
    ZooModel("edgetam_mask_decoder", "transformers", build_edgetam_mask_decoder),
    ZooModel("sam3_tracker_mask_decoder", "transformers", build_sam3_tracker_mask_decoder),
)
