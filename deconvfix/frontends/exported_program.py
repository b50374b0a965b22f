"""Front end for torch.export.ExportedProgram: signature, state and dynamic shapes stay as they are.

The graph of aten operators is rewritten by the pass of `fx_graph`, on a copy. What comes out saves and
loads like any exported program, without deconvfix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.export import ExportedProgram

from deconvfix.frontends import fx_graph
from deconvfix.frontends.base import Findings
from deconvfix.frontends.torch_compare import psnr_db
from deconvfix.frontends.torch_inputs import copy_quietly
from deconvfix.frontends.torch_parity import compare_modules
from deconvfix.frontends.torch_watch import executed_transposed_convolutions
from deconvfix.parity import ParityReport
from deconvfix.plan import Plan

__all__ = ["FRONTEND", "ExportedProgramFrontend"]


class ExportedProgramFrontend:
    """See the module's text."""

    def prepare(
        self, model: ExportedProgram, example_inputs: Any | None, *, inplace: bool
    ) -> ExportedProgram:
        """A copy, unless `inplace`."""
        if inplace:
            return model
        copied = copy_quietly(model, {})
        # torch's copy renames nodes that are called like Python's builtins ("input"), and the
        # signature, which it does not rename, refers to nodes by their names.
        for old, new in zip(model.graph.nodes, copied.graph.nodes, strict=True):
            new.name = old.name
        return copied

    def find(self, model: ExportedProgram, example_inputs: Any | None) -> Findings:
        """Transposed convolutions by the names of their nodes; nothing is run."""
        return fx_graph.FRONTEND.find(model.graph_module, None)

    def apply(self, model: ExportedProgram, plan: Plan) -> ExportedProgram:
        """Rewrites the graph in place; torch then checks the program."""
        fx_graph.FRONTEND.apply(model.graph_module, plan)
        model.validate()
        return model

    def left(self, model: ExportedProgram, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """What still runs, if nothing was to be kept."""
        if any(each.decision != "replaced" for each in plan.decisions):
            return []
        return executed_transposed_convolutions(model.module(), example_inputs)

    def verify(
        self,
        before: ExportedProgram,
        after: ExportedProgram,
        inputs: Sequence[Any],
        plan: Plan | None,
    ) -> ParityReport:
        """Compares the programs as modules, on their own example inputs if there are no others."""
        if not inputs and before.example_inputs is not None:
            inputs = [before.example_inputs]
        return compare_modules(before.module(), after.module(), inputs, plan)

    def psnr_db(
        self, before: ExportedProgram, after: ExportedProgram, example_inputs: Any
    ) -> float | None:
        """See `torch_compare.psnr_db`."""
        return psnr_db(before.module(), after.module(), example_inputs)


FRONTEND = ExportedProgramFrontend()
