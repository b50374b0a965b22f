"""The graph pass under its public name, for use in a torch.fx PassManager."""

from deconvfix.extras import needs

with needs("torch", "deconvfix.fx"):
    from deconvfix.frontends.torch.graph import ReplaceTransposedConvs

__all__ = ["ReplaceTransposedConvs"]
