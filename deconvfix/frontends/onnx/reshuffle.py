"""Pixel shuffles that a file has already, written anew where a target does not accept them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx_ir as ir

from deconvfix.errors import Refusal
from deconvfix.forms.base import Settings
from deconvfix.forms.subpixel import SUBPIXEL
from deconvfix.frontends.onnx.accepts import broken_by
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.pixel_shuffle import Place, pixel_shuffle, why_not
from deconvfix.frontends.onnx.shuffles import shuffle_at
from deconvfix.frontends.onnx.steps import Writer
from deconvfix.frontends.onnx.values import Known, Names
from deconvfix.plan import Decision
from deconvfix.targets.profile import Profile
from deconvfix.targets.writing import Shuffle

__all__ = ["OP", "rewrite_shuffles", "shuffles_for_target"]

# What a decision about one calls it.
OP = "pixel shuffle"


@dataclass(frozen=True, eq=False)
class _Found:
    """A pixel shuffle of the main graph.

    Attributes:
        name: Of its first node, or of what that gives.
        nodes: Its nodes, in order.
        x: Its input.
        place: Where it stands.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    x: ir.Value
    place: Place


def shuffles_for_target(
    model: ir.Model, profile: Profile, *, is_open: bool
) -> tuple[Decision, ...]:
    """Decisions for the shuffles that a target does not accept: the first way that it does, or a refusal.

    Args:
        model: The model, which is not changed.
        profile: What the target accepts.
        is_open: Whether the model has open sizes.
    """
    names, opset = Names(model), opset_of(model.opset_imports)
    decisions = []
    for found in _shuffles(model):
        if _is_accepted(found, found.nodes, profile, is_open):
            continue
        accepted = (
            shuffle
            for shuffle in _ways(found, opset)
            if _is_accepted(
                found, _drafted(found, names, opset, profile, shuffle), profile, is_open
            )
        )
        decisions.append(_decided(found, next(accepted, None), profile))
    return tuple(decisions)


def _drafted(
    found: _Found, names: Names, opset: int, profile: Profile, shuffle: Shuffle
) -> list[ir.Node]:
    """The nodes of a way, in no graph."""
    writer = Writer(names, found.name, opset, profile=profile)
    pixel_shuffle(writer, found.x, found.place, shuffle)
    return writer.nodes


def _is_accepted(found: _Found, nodes: Sequence[ir.Node], profile: Profile, is_open: bool) -> bool:
    rank = len(found.place.factors) + 2
    return broken_by(nodes, profile, lambda value: rank, open_sizes=is_open) is None


def rewrite_shuffles(model: ir.Model, decisions: tuple[Decision, ...], profile: Profile) -> None:
    """Carries decisions about shuffles out, in place."""
    wanted = {
        decision.name: decision.settings
        for decision in decisions
        if decision.op == OP and decision.decision == "replaced"
    }
    if not wanted:
        return
    names, opset = Names(model), opset_of(model.opset_imports)
    for found in list(_shuffles(model)):
        settings = wanted.get(found.name)
        if settings is None:
            continue
        writer = Writer(names, found.name, opset, like=found.nodes[0], profile=profile)
        y, _ = pixel_shuffle(writer, found.x, found.place, settings.shuffle)
        old = found.nodes[-1].outputs[0]
        y.metadata_props.update(old.metadata_props)
        ir.convenience.replace_nodes_and_values(
            model.graph, found.nodes[-1], found.nodes[::-1], writer.nodes, [old], [y]
        )


def _shuffles(model: ir.Model) -> Iterator[_Found]:
    known = Known(model)
    for node in list(model.graph):
        x = node.inputs[0] if node.inputs else None
        shape = known.shape(x, None) if node.op_type in ("DepthToSpace", "Reshape") else None
        if x is None or shape is None or len(shape) < 3 or shape[1] is None:
            continue
        written = shuffle_at(known, node, shape[1], len(shape) - 2)
        dtype = known.dtype(x, None)
        if written is None or dtype is None:
            continue
        nodes, channels = written
        factors = channels.shape[1:]
        numbers = np.arange(channels.size)
        by_channel = np.array_equal(channels, numbers.reshape(channels.shape))
        by_phase = np.array_equal(
            channels, np.moveaxis(numbers.reshape(*factors, len(channels)), -1, 0)
        )
        if not by_channel and not by_phase:
            continue  # in an order that no shuffle has
        place = Place(
            factors,
            len(channels),
            tuple(shape[2:]),
            None,
            dtype.numpy(),
            phases_first=not by_channel,
        )
        yield _Found(node.name or str(node.outputs[0].name), nodes, x, place)


def _ways(found: _Found, opset: int) -> Iterator[Shuffle]:
    """The shuffles that take the channels in their order."""
    ordered = (
        ("dcr", "whole", "slices")
        if found.place.phases_first
        else ("crd", "axes", "whole", "identity")
    )
    for shuffle in get_args(Shuffle):
        if shuffle in ordered and not why_not(
            shuffle, found.place.factors, found.place.sizes, opset, apart=False
        ):
            yield shuffle


def _decided(found: _Found, shuffle: Shuffle | None, profile: Profile) -> Decision:
    if shuffle is not None:
        settings = Settings(shuffle=shuffle)
        reason = f"the same function, written as {shuffle} for the target"
        return Decision(found.name, OP, "replaced", SUBPIXEL.name, reason, None, settings)
    refusal = Refusal(
        "no way to write it is accepted, in the order that its channels have",
        f"the target {profile.name!r} must accept one",
        "Fix the sizes of the inputs, or choose another target",
    )
    return Decision(found.name, OP, "refused", None, refusal.sentence(found.name), None)
