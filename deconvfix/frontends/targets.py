"""Writings for a target, which only what is written as operators can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from deconvfix.errors import OptionError
from deconvfix.plan import Options, Plan

__all__ = ["WritesForTargets", "check_writes_for_targets", "deconvs", "with_writings"]


@runtime_checkable
class WritesForTargets(Protocol):
    """A front end that can choose how a layer is written."""

    def with_writings(self, model: Any, plan: Plan) -> Plan:
        """A plan in which each layer has a writing that the plan's target accepts, or is refused.

        Without a target, and where no writing was asked for, what suits the layer.

        Args:
            model: The model, before anything is changed.
            plan: What is to be done; what its settings say of the writing stays.
        """
        ...

    def deconv_plan(
        self, model: Any, options: Options, selects: Callable[[str], bool] | None = None
    ) -> Plan:
        """A plan that writes what is a transposed convolution in other words as one."""
        ...


def deconvs(
    frontend: object, model: Any, options: Options, selects: Callable[[str], bool] | None
) -> Plan:
    """The plan of the way back.

    Raises:
        OptionError: If models of this kind have none.
    """
    check_writes_for_targets(frontend, "to", options.to)
    assert isinstance(frontend, WritesForTargets)
    return frontend.deconv_plan(model, options, selects)


def with_writings(frontend: object, model: Any, plan: Plan, options: Options) -> Plan:
    """The plan with writings, where models have some.

    Raises:
        OptionError: If models of this kind cannot have it.
    """
    asked = [
        name
        for name, value in (
            ("target", options.target),
            ("shuffle", options.shuffle),
            ("convolution", options.convolution),
            ("structure", options.structure),
        )
        if value is not None
    ]
    if isinstance(frontend, WritesForTargets):
        return frontend.with_writings(model, plan)
    if not asked:
        return plan
    # Modules have this one, too.
    if asked == ["convolution"] and options.convolution != "phases":
        return plan
    check_writes_for_targets(frontend, asked[0], getattr(options, asked[0]))
    raise AssertionError("what does not write for targets was refused")


def check_writes_for_targets(frontend: object, name: str, value: object) -> None:
    """Checks that models of a kind can have what an option asks for.

    Raises:
        OptionError: If they cannot.
    """
    if isinstance(frontend, WritesForTargets):
        return
    raise OptionError(
        name,
        f"the value is {value!r}, and the model is no ONNX model",
        "operators are chosen where they are written, in ONNX files",
        "Convert the ONNX file that the model is exported to, or name a file .onnx as the output",
    )
