"""A torch model run for its diagnosis: what its layers see, and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import DeconvfixError
from deconvfix.frontends.base import MOST_SAMPLES, Kernel, LayerAnswer, Probe
from deconvfix.frontends.torch.calls import Call, Observed, dtype_obstacle, observe
from deconvfix.frontends.torch.find import call_path
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    innermost_name,
    names_of,
    run_model,
)
from deconvfix.frontends.torch.layers import ConvTransposeModule, read_weight
from deconvfix.grid.kernel import uneven_overlap
from deconvfix.plan import Match, Plan, Replaced

__all__ = [
    "gradient_advice",
    "kernels_of",
    "probe_module",
]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: dict[type[nn.Module], int] = {
    pool: ndim
    for ndim, pools in {
        1: (nn.AvgPool1d, nn.MaxPool1d, nn.LPPool1d),
        2: (nn.AvgPool2d, nn.MaxPool2d, nn.LPPool2d),
        3: (nn.AvgPool3d, nn.MaxPool3d, nn.LPPool3d),
    }.items()
    for pool in pools
}


def probe_module(model: nn.Module, example_inputs: Any, matches: Sequence[Match]) -> Probe:
    """Runs a model and describes its layers' and its own outputs.

    Args:
        model: In the mode that matters; batch statistics of a model in train mode change.
        example_inputs: As for `deconvfix.inspect`.
        matches: Its layers.
    """
    inputs = as_inputs(example_inputs)
    # Only plain tensors are varied. All other leaves stay as they were given.
    leaves, structure = pytree.tree_flatten((inputs.args, inputs.kwargs))
    positions = [index for index, leaf in enumerate(leaves) if _is_plain(leaf)]
    names = names_of(model)
    answers: list[LayerAnswer] = []
    counts: Counter[str] = Counter()

    def record(observed: Observed) -> None:
        with torch.no_grad():
            path = innermost_name(observed.stack, names)
            name = _owner(observed, path, matches, counts)
            answer = None if name is None else _answer(name, observed.call)
        if answer is not None:
            answers.append(answer)

    try:
        with observe(record):
            results = flat_tensors(run_model(model, inputs))
    except DeconvfixError as error:
        return Probe(notes=(f"No diagnosis by running the model: {error.found}.",))

    # The same run on other values, for constants and noise in the place of the examples.
    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        changed = list(leaves)
        for position, array in zip(positions, arrays, strict=True):
            like = leaves[position]
            changed[position] = torch.from_numpy(np.array(array)).to(like.device, like.dtype)
        args, kwargs = pytree.tree_unflatten(changed, structure)
        return _arrays(flat_tensors(run_model(model, as_inputs((tuple(args), kwargs)))))

    return Probe(
        layers=tuple(answers),
        inputs=tuple(_arrays([leaves[position] for position in positions])),
        outputs=tuple(_arrays(results)),
        run=run,
    )


def gradient_advice(model: nn.Module) -> Iterator[str]:
    """Sentences about layers whose gradient has a grid.

    The gradient of a convolution with respect to its input is a transposed convolution of the same
    kernel and stride, and that of a pooling layer spreads over the same windows: where the stride does
    not divide the kernel, pixels get gradients from different numbers of windows (Odena et al. 2016).
    """
    for name, module in model.named_modules():
        geometry = _window(module)
        if geometry is None:
            continue
        kernel, stride, dilation = geometry
        spec = ConvTransposeSpec.create(1, 1, kernel, stride=stride, dilation=dilation)
        # The gradient is a transposed convolution of this geometry.
        if max(stride) == 1 or not uneven_overlap(spec):
            continue
        missed = any(k < s for k, s in zip(kernel, stride, strict=True))
        reach = "some input pixels get no gradient" if missed else "its windows overlap unevenly"
        yield (
            f"{name or '(model)'}: {type(module).__name__} with kernel {_times(kernel)} and stride "
            f"{_times(stride)}: {reach}, so the gradient of its input has a grid."
        )


def _window(
    module: nn.Module,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    if isinstance(module, _CONVS):
        return tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)
    ndim = next((n for kind, n in _POOLS.items() if isinstance(module, kind)), None)
    if ndim is None:
        return None
    pool: Any = module
    # torch's pooling layers take the kernel's size for a stride that is None.
    stride = pool.kernel_size if pool.stride is None else pool.stride
    kernel, stride, dilation = (
        (sizes,) * ndim if isinstance(sizes, int) else tuple(sizes)
        for sizes in (pool.kernel_size, stride, getattr(pool, "dilation", 1))
    )
    return kernel, stride, dilation


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _owner(
    observed: Observed, path: str, matches: Sequence[Match], counts: Counter[str]
) -> str | None:
    """The name of the match that a call belongs to, which is then counted in `counts`.

    By the module's name; by the module in whose code it is; in graphs, which have neither, the calls
    of one geometry run in the order in which they were found.
    """
    call = observed.call
    spec = call.spec()
    same = [match for match in matches if match.spec == spec]
    # The most certain way first. Several matches at one place take turns.
    for candidates in (
        [match for match in matches if match.name == path and call_path(path, match.op) is None],
        [match for match in same if call_path(match.name, match.op) == path],
        [match for match in same if match.op == call.function],
    ):
        if candidates:
            name = min(candidates, key=lambda match: counts[match.name]).name
            counts[name] += 1
            return name
    return None


def _answer(name: str, call: Call) -> LayerAnswer | None:
    """What a call shows of its layer; None where it has no values that could be looked at."""
    x: Tensor = call.input
    weight: Tensor = call.weight
    if weight.is_meta or x.is_meta or dtype_obstacle(weight) or dtype_obstacle(x):
        return None
    if not x.numel():
        return None
    spec = call.spec()
    # An unbatched input gets a batch axis: (C_in, *L) -> (1, C_in, *L).
    x = x[None] if x.dim() == spec.ndim + 1 else x
    # Other samples need not leave their device.
    samples = read_weight(x[:MOST_SAMPLES])
    bias = None if call.bias is None else read_weight(call.bias)
    size = spec.output_size(tuple(int(n) for n in x.shape[2:]))
    return LayerAnswer.of(name, spec, read_weight(weight), bias, samples, size)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not (
        leaf.is_meta or leaf.is_quantized or leaf.is_nested or leaf.layout != torch.strided
    )


def _arrays(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """In NumPy, floats that it does not have as float32; an empty array for what it cannot hold."""
    arrays: list[NDArray[Any]] = []
    for tensor in tensors:
        if not _is_plain(tensor):
            arrays.append(np.empty(0))
            continue
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
            tensor = tensor.float()
        arrays.append(tensor.numpy())
    return arrays


def kernels_of(before: nn.Module, after: nn.Module, plan: Plan) -> tuple[Kernel, ...]:
    """The answers to one pixel of the layers whose function changed.

    Args:
        before: The original; neither model is changed.
        after: The converted model.
        plan: What was converted.
    """
    before, after = copy_model(before), copy_model(after)
    changed = [decision for decision in plan.replaced if not decision.exact]
    kernels = [_kernel(before, after, decision) for decision in changed]
    return tuple(kernel for kernel in kernels if kernel is not None)


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return array


def _kernel(before: nn.Module, after: nn.Module, decision: Replaced) -> Kernel | None:
    """The answers to one pixel, for the pair of channels with the largest weight."""
    old, new = before.get_submodule(decision.name), after.get_submodule(decision.name)
    spec = decision.spec
    if not isinstance(old, ConvTransposeModule):
        return None
    # (C_in, C_out/g, *k) -> the largest tap of each pair of channels, (C_in, C_out/g)
    weight = np.abs(read_weight(old.weight))
    largest = weight.reshape(*weight.shape[:2], -1).max(-1)
    c_in, per_group = np.unravel_index(largest.argmax(), largest.shape)
    group = int(c_in) // (spec.in_channels // spec.groups)
    # The weight's second axis counts the outputs of one group alone.
    c_out = group * (spec.out_channels // spec.groups) + int(per_group)
    # Inputs on each side of the lit pixel, so that the border of the map is out of its reach.
    reach = [
        big_k // s + 2 for big_k, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    dark = torch.zeros(1, spec.in_channels, *(2 * r + 1 for r in reach)).to(old.weight)
    lit = dark.clone()
    lit[(0, int(c_in), *reach)] = 1
    # One stride around the trained kernel: fitted kernels may be larger.
    window: tuple[Any, ...] = tuple(
        slice(max(0, r * s - b - s), r * s - b + big_k + s)
        for r, s, (b, _), big_k in zip(
            reach, spec.stride, spec.padding, spec.effective_kernel_size, strict=True
        )
    )
    answers = []
    for layer in (old, new):
        # What hooks do with its output is not the layer's.
        layer._forward_hooks.clear()
        # The difference takes away the bias, and whatever else a dark map gives.
        answer = run_model(layer, Inputs((lit,), {})) - run_model(layer, Inputs((dark,), {}))
        answers.append(_array(answer)[(0, c_out, *window)])
    return Kernel(decision.name, *answers)
