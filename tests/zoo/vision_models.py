"""Networks of kornia."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Built, ZooModel, seeded


class SideBranches(nn.Module):
    """Two side branches of DexiNed, whose whole network is too wide for a quick test."""

    def __init__(self) -> None:
        super().__init__()
        from kornia.models.dexined import UpConvBlock

        self.fine = UpConvBlock(6, 1)
        self.coarse = UpConvBlock(6, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # A single channel under ReLU would else be zero everywhere.
                nn.init.constant_(module.bias, 0.5)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Bring both feature maps to twice the size of the finer one and add them."""
        shape = [2 * size for size in fine.shape[2:]]
        return self.fine(fine, shape) + self.coarse(coarse, shape)


@seeded
def build_edge_upsampler() -> Built:
    """Edge detection with kernels of two and sixteen taps at stride two."""
    return SideBranches(), (torch.randn(1, 6, 16, 24), torch.randn(1, 6, 2, 3)), {}


@seeded
def build_kornia_mask_decoder() -> Built:
    """The Segment Anything mask decoder on a feature map that is not square."""
    from kornia.models.sam.architecture.mask_decoder import MaskDecoder
    from kornia.models.sam.architecture.transformer import TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=16, num_heads=2, mlp_dim=24)
    model = MaskDecoder(transformer_dim=16, transformer=transformer, iou_head_hidden_dim=16)
    inputs = {
        "image_embeddings": torch.randn(1, 16, 4, 6),
        "image_pe": torch.randn(1, 16, 4, 6),
        "sparse_prompt_embeddings": torch.randn(2, 3, 16),
        "dense_prompt_embeddings": torch.randn(2, 16, 4, 6),
        "multimask_output": True,
    }
    return model, (), inputs


VISION: tuple[ZooModel, ...] = (
    ZooModel("edge_upsampler", "kornia", build_edge_upsampler),
    ZooModel("kornia_mask_decoder", "kornia", build_kornia_mask_decoder),
)
