"""Running a module's transposed convolutions as sub-pixel convolutions, where it calls them.

A rerouted module keeps its parameters, names, hooks and methods. Its class becomes a subclass of the same
name (as torch.nn.utils.parametrize does it), so that copies, pickles, torch.export, torch.compile and
torch.fx all see it. Inside its forward a call is converted where it happens, whatever made its weight.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.calls import dtype_obstacle, parse
from deconvfix.frontends.torch.find import EXCLUDED

__all__ = [
    "Excluded",
    "Reroute",
    "keep",
    "reroute",
]

# Functions and geometries that stay as they are.
Excluded = frozenset[tuple[str, ConvTransposeSpec]]

_OWN_FORWARD = "_deconvfix_own_forward"


class Reroute(TorchFunctionMode):
    """Runs every transposed convolution inside it as a sub-pixel convolution.

    Args:
        excluded: Calls to leave as they are.
    """

    def __init__(self, excluded: Excluded = frozenset()) -> None:
        super().__init__()
        self.excluded = excluded
        self.passing = False

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = parse(func, args, kwargs or {})
        if (
            call is None
            or self.passing
            or (isinstance(call.weight, Tensor) and dtype_obstacle(call.weight))
        ):
            return func(*args, **(kwargs or {}))
        # Excluded calls of this module, which may stand inside another rerouted one.
        if self.excluded and (call.function, call.spec()) in self.excluded:
            with _passing():
                return func(*args, **(kwargs or {}))
        return torch_steps.conv_transpose(**call.arguments)


def reroute(module: nn.Module, excluded: Excluded = frozenset()) -> None:
    """Reroutes the transposed convolutions that run in a module, from now on."""
    _subclass(module, excluded)


def keep(module: nn.Module) -> None:
    """Keeps an excluded layer as it is inside a module that is rerouted."""
    _subclass(module, None)


def _subclass(module: nn.Module, excluded: Excluded | None) -> None:
    cls: Any
    if EXCLUDED not in vars(module):
        # A forward that was set on the instance (some libraries do so) would hide the class's.
        if "forward" in vars(module):
            vars(module)[_OWN_FORWARD] = vars(module).pop("forward")
        # A second call changes the set of exclusions alone: the class is rerouted already.
        cls = type(module)
        if parametrize.is_parametrized(module):
            # torch takes parametrizations off by going to the first base class, and deletes their
            # properties from the class itself: the base is rerouted, the properties move along.
            base = _rerouted_class(cls.__bases__[0])
            unused = ("__dict__", "__weakref__")
            own = {name: value for name, value in vars(cls).items() if name not in unused}
            # torch makes such a class for each instance, so it is not shared or cached.
            module.__class__ = type(cls.__name__, (base,), own)
        else:
            module.__class__ = _rerouted_class(cls)
    # On the instance, as the class is shared by all modules of its kind.
    vars(module)[EXCLUDED] = excluded


# One subclass per class: modules of one class stay instances of one class.
@functools.cache
def _rerouted_class(cls: Any) -> type[nn.Module]:
    """A subclass of the same name whose forward and public methods are rerouted."""
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce,
        "forward": _rerouted(cls.forward),
    }
    # `forward` is there already; other public methods are ways into the module, too.
    for name in _own_methods(cls):
        namespace.setdefault(name, _rerouted(getattr(cls, name)))
    return type(cls.__name__, (cls,), namespace)


def _own_methods(cls: type[nn.Module]) -> list[str]:
    """Public methods of the user's classes: `decode` is called as often as forward."""
    return [
        name
        for base in cls.__mro__
        if base.__module__.split(".")[0] not in ("torch", "builtins")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in vars(nn.Module)
    ]


def _rerouted(method: Callable[..., Any]) -> Callable[..., Any]:
    is_forward = getattr(method, "__name__", "") == "forward"

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Read at each call, as `reroute` may be called again with other exclusions.
        excluded = vars(self)[EXCLUDED]
        # The forward that somebody set on the instance is a bound method already.
        own = vars(self).get(_OWN_FORWARD) if is_forward else None
        with _mode(excluded):
            return method(self, *args, **kwargs) if own is None else own(*args, **kwargs)

    return run


def _mode(excluded: Excluded | None) -> AbstractContextManager[Any]:
    return _passing() if excluded is None else Reroute(excluded)


@contextmanager
def _passing() -> Iterator[None]:
    """Lets calls through that a rerouted module further out would convert."""
    # The modes are told, not removed: functions of torch offer no way to leave one out.
    around = [
        mode
        for mode in torch.overrides._get_current_function_mode_stack()
        if isinstance(mode, Reroute) and not mode.passing
    ]
    for mode in around:
        mode.passing = True
    try:
        yield
    finally:
        for mode in around:
            mode.passing = False


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickles by the original class: the subclass is made again when it is loaded."""
    return _new, (type(self).__bases__[0],), self.__getstate__()


def _new(cls: Any) -> Any:
    made = _rerouted_class(cls)
    return made.__new__(made)
