"""The graph pass under its public name, for use in a torch.fx PassManager."""

from deconvfix.frontends.torch.graph import ReplaceTransposedConvs

__all__ = ["ReplaceTransposedConvs"]
