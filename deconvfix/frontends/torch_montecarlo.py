"""Monte Carlo arithmetic: how far may another runtime's rounding move a model's outputs?

Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA 1997.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.frontends.torch_inputs import Inputs, flat_tensors, run_model

__all__ = ["perturbed_outputs"]


class _MonteCarlo(TorchDispatchMode):
    """Moves the operands and the results of each operation by one eps of their dtype, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        views = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
        real = any(
            isinstance(leaf, Tensor) and leaf.is_floating_point()
            for leaf in pytree.tree_leaves((args, kwargs))
        )
        if views or schema.is_mutable or not real:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, self._moved, (args, kwargs))
        return pytree.tree_map_only(Tensor, self._moved, func(*args, **kwargs))

    def _moved(self, tensor: Tensor) -> Tensor:
        # Single numbers are often sizes: moving them would change what the model does.
        if not tensor.is_floating_point() or tensor.dim() == 0:
            return tensor
        eps = torch.finfo(tensor.dtype).eps
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32)
        return tensor + tensor * (eps * noise).to(tensor.dtype)


def perturbed_outputs(model: nn.Module, inputs: Inputs, runs: int = 3) -> list[list[Tensor]]:
    """The outputs of some runs under Monte Carlo arithmetic.

    The model should be in eval mode; it is run as it is.
    """
    results = []
    for seed in range(runs):
        with _MonteCarlo(seed):
            results.append(flat_tensors(run_model(model, inputs)))
    return results
