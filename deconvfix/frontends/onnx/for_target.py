"""The writing of each layer: the first one that the target accepts.

A writing is tried by writing it: its nodes are made, and looked at, and thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import PhaseConvs
from deconvfix.errors import Refusal
from deconvfix.forms.base import Settings
from deconvfix.frontends.onnx.accepts import Broken, broken_by, has_open_sizes
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.folded import with_folded
from deconvfix.frontends.onnx.nodes import plain
from deconvfix.frontends.onnx.pixel_shuffle import by_phase, why_not
from deconvfix.frontends.onnx.reshuffle import shuffles_for_target
from deconvfix.frontends.onnx.steps import Writer
from deconvfix.frontends.onnx.structured import Structured
from deconvfix.frontends.onnx.structures import as_reduced, structure_of, structures_of, told
from deconvfix.frontends.onnx.surgery import Operation, Surgeon
from deconvfix.frontends.onnx.tail import tail_of
from deconvfix.frontends.onnx.values import Operand
from deconvfix.frontends.onnx.weights import Store
from deconvfix.plan import Decision, Plan, Replaced, Verdict
from deconvfix.planning import as_folded, can_fold
from deconvfix.targets.profile import Profile
from deconvfix.targets.writing import Structure, Writing

__all__ = [
    "Choices",
    "choices_of",
    "for_target",
    "stays",
    "tails_told",
    "with_fold",
    "with_phases",
    "writings_of",
]

_MOST_PHASES = 4
# Up to so many channels a map of all phases is small enough for ONNX Runtime's DepthToSpace.
_FEW_CHANNELS = 16


def for_target(model: ir.Model, plan: Plan, profile: Profile) -> Plan:
    """A plan in which each layer has a writing that the target accepts, or is refused.

    Args:
        model: The model.
        plan: What is to be done; what its settings say of the writing stays.
        profile: Of the target.
    """
    drafts = _Drafts(model, plan, profile)
    decisions = [
        _settled(drafts, drafts.layers[decision.name], decision)
        if isinstance(decision, Replaced)
        else decision
        for decision in plan.decisions
    ]
    shuffles = shuffles_for_target(model, profile, is_open=drafts.is_open)
    settled = replace(plan, decisions=(*decisions, *shuffles))
    return tails_told(drafts, drafts.layers, settled)


@dataclass(frozen=True)
class Choices:
    """What a target accepts for one layer.

    Attributes:
        keep: Whether it accepts the layer as it is.
        writings: The layer in every writing that it accepts, in the order of the profile.
    """

    keep: bool
    writings: tuple[Replaced, ...]


def choices_of(model: ir.Model, plan: Plan, profile: Profile) -> dict[str, Choices]:
    """What a target accepts, for each layer that a plan replaces; see `for_target`."""
    drafts, found = _Drafts(model, plan, profile), {}
    for decision in plan.replaced:
        layer = drafts.layers[decision.name]
        written = _candidates(layer, decision, profile)
        found[decision.name] = Choices(
            drafts.broken_by([layer.node], decision) is None,
            tuple(one for one in written if drafts.broken(layer, one) is None),
        )
    return found


def _candidates(layer: Layer, decision: Replaced, profile: Profile) -> Iterator[Replaced]:
    """A layer in all ways that its weight and its geometry allow."""
    reduced = None
    for structure in structures_of(layer, decision):
        settings = replace(decision.settings, structure=structure)
        found = structure_of(layer, replace(decision, settings=settings))
        if structure == "reduced":
            reduced = found
        elif found is not None:
            yield _structured(layer, decision, found)
    decision = _structured(layer, decision, reduced)
    spec = decision.spec if reduced is None else reduced.layer.spec
    for writing, impossible in writings_of(layer, decision, profile):
        if impossible is None:
            yield _written(decision, writing, spec)


def writings_of(
    layer: Layer, decision: Replaced, profile: Profile
) -> Iterator[tuple[Writing, str | None]]:
    """The writings of a layer that its settings allow, each with a clause why it is impossible, or None."""
    asked = decision.settings
    decision = as_reduced(layer, decision)
    for writing in profile.writings(decision.spec.ndim):
        if asked.convolution in (None, writing.convolution) and asked.shuffle in (
            None,
            writing.shuffle,
        ):
            yield writing, _impossible(layer, decision, writing)


def with_phases(layer: Layer, decision: Replaced) -> Replaced:
    """A decision for folded upsampling that has no writing yet, with the fastest one.

    A Conv for each phase, laid side by side: no crop of the large map is needed then, and DepthToSpace, ONNX
    Runtime's slow copy, is not either. 64, 128 and 256 channels (k 3, s 2) run at 1.67, 1.89 and 2.01 instead
    of 1.26, 1.48 and 1.64 times the speed of Resize and Conv. Measured for four phases; more of them, and
    open sizes, are left as they are. With 3 output channels DepthToSpace wins, 4.8 against 1.9; with 16, 2.0
    against 1.7.
    """
    settings = decision.settings
    is_open = layer.spec is None or None in layer.input_size
    if settings.convolution or settings.shuffle or is_open or not _is_best_by_phase(decision.spec):
        return decision
    return replace(decision, settings=replace(settings, convolution="phases", shuffle="slices"))


def tails_told(surgeon: Surgeon, layers: Mapping[str, Layer], plan: Plan) -> Plan:
    """A plan whose reasons say what follows a layer and comes before its shuffle.

    Args:
        surgeon: Of the model that the layers are in, in which pairs are folded as planned.
        layers: By name; of others nothing is told.
        plan: Whose writings are decided.
    """

    def told_of(decision: Decision) -> Decision:
        layer = layers.get(decision.name)
        if not isinstance(decision, Replaced) or layer is None or not decision.target.is_exact:
            return decision
        chosen = decision if decision.upsampling is None else with_phases(layer, decision)
        words = Operation(surgeon, layer, chosen).tail().words()
        return replace(decision, reason=f"{decision.reason}; {words}") if words else decision

    return replace(plan, decisions=tuple(map(told_of, plan.decisions)))


def _is_best_by_phase(spec: ConvTransposeSpec) -> bool:
    return math.prod(spec.stride) <= _MOST_PHASES and spec.out_channels > _FEW_CHANNELS


def with_fold(layer: Layer, decision: Replaced) -> Replaced:
    """A decision for a form that upsamples, folded where that saves multiply-accumulates.

    As `with_phases`, and by phase too where a single Conv would save nothing: 1.1 to 1.9 times the speed of
    Resize and Conv (k 3 and 4, s 2), and 2.8 to 5.8 times where there are more phases.
    """
    ways: list[Writing | None] = [Writing("phases", "slices"), None]
    if not _is_best_by_phase(decision.spec):
        ways.reverse()
    for way in ways:
        settings = decision.settings if way is None else _in_writing(decision.settings, way)
        if can_fold(decision, settings):
            tried = as_folded(decision, settings)
            if way is None or _impossible(layer, tried, way) is None:
                return tried
    return decision


def _in_writing(settings: Settings, writing: Writing) -> Settings:
    return replace(settings, convolution=writing.convolution, shuffle=writing.shuffle)


class _DraftStore(Store):
    """Keeps nothing: new weights have a shape alone."""

    def put(self, writer: Writer, operand: Operand, array: NDArray[Any], key: Any) -> ir.Value:
        """A value that is in no graph."""
        return ir.Value(name="weight", shape=ir.Shape(array.shape))


class _Drafts(Surgeon):
    """Writes nodes that go nowhere: the stored weights stay as they are.

    Attributes:
        layers: Of a copy of the model in which pairs are folded as planned, by name.
        is_open: Whether the model has open sizes.
    """

    def __init__(self, model: ir.Model, plan: Plan, profile: Profile) -> None:
        # What is folded is a layer as soon as the plan is carried out.
        draft = with_folded(plain(model).clone(), plan.folded)
        super().__init__(draft, profile)
        self.store = _DraftStore(draft)
        self.layers = {layer.name: layer for layer in find_layers(draft)}
        self.is_open = has_open_sizes(model)

    def broken(self, layer: Layer, decision: Replaced) -> Broken | None:
        """The line of the profile that the nodes of a layer's new form break."""
        if decision.target.keeps_layer:
            return self.broken_by([layer.node], decision)
        operation = Operation(self, layer, decision)
        operation.write()
        new = [node for node in operation.writer.nodes if node not in operation.copied]
        return self.broken_by(new, decision)

    def broken_by(self, nodes: Sequence[ir.Node], decision: Replaced) -> Broken | None:
        """The line that nodes on maps of a layer's rank break."""
        rank = decision.spec.ndim + 2
        return broken_by(nodes, self.profile, lambda value: rank, open_sizes=self.is_open)


def _settled(drafts: _Drafts, layer: Layer, decision: Replaced) -> Decision:
    """A decision with the first writing that is accepted, or a refusal."""
    profile = drafts.profile
    reason, line = "", None
    if not decision.target.shuffles:
        folded = _first_folded(drafts, layer, decision)
        if folded is not None:
            return folded
        broken = drafts.broken(layer, decision)
        if broken is None:
            return decision
        reason, line = broken.found, broken.key
        return _refused(decision, _not_accepted(reason, profile, line))
    found = structure_of(layer, decision)
    # What is measured without a target is tried first, where the target has no writings of its own.
    if found is not None and found.structure != "reduced":
        tried = _structured(layer, decision, found)
        accepted = decision.spec.ndim not in profile.prefer
        if accepted and drafts.broken(layer, tried) is None:
            return tried
        reduced = replace(decision, settings=replace(decision.settings, structure="reduced"))
        found = structure_of(layer, reduced)
    decision = _structured(layer, decision, found)
    spec = decision.spec if found is None else found.layer.spec
    for writing, impossible in writings_of(layer, decision, profile):
        if impossible is not None:
            reason = reason or f"{writing}: {impossible}"
            continue
        tried = _written(decision, writing, spec)
        broken = drafts.broken(layer, tried)
        if broken is None:
            return replace(tried, reason=f"{tried.reason}, as {writing}")
        if line is None:
            # The first way that is possible tells best what stands in the way.
            reason, line = f"{writing}: {broken.found}", broken.key
    return _refused(decision, _not_accepted(reason, profile, line))


def _first_folded(drafts: _Drafts, layer: Layer, decision: Replaced) -> Replaced | None:
    """The first writing that is accepted in which a form that upsamples is folded; None without one."""
    if decision.settings.fold is False:
        return None
    asked = replace(decision, settings=replace(decision.settings, fold=True))
    for writing, impossible in writings_of(layer, asked, drafts.profile):
        settings = _in_writing(asked.settings, writing)
        if impossible is None and asked.target.folding(asked.spec, settings) is not None:
            tried = as_folded(decision, settings)
            if drafts.broken(layer, tried) is None:
                return replace(tried, reason=f"{tried.reason}, as {writing}")
    return None


def _written(decision: Replaced, writing: Writing, spec: ConvTransposeSpec) -> Replaced:
    """A decision with a writing; the geometry is that of what is written, the reduced layer."""
    settings = replace(decision.settings, convolution=writing.convolution, shuffle=writing.shuffle)
    macs = decision.target.compile(spec, settings).macs_per_position
    return replace(decision, settings=settings, macs_after=macs)


def _structured(layer: Layer, decision: Replaced, found: Structured | None) -> Replaced:
    structure: Structure = "none" if found is None else found.structure
    settings = replace(decision.settings, structure=structure)
    return told(layer, replace(decision, settings=settings), found)


def _impossible(layer: Layer, decision: Replaced, writing: Writing) -> str | None:
    settings = replace(decision.settings, convolution=writing.convolution)
    steps = decision.target.compile(decision.spec, settings).steps
    apart = any(isinstance(step, PhaseConvs) for step in steps)
    if apart and tail_of(layer).quantised:
        return "a quantised layer needs one convolution"
    if by_phase(writing.shuffle) and not apart and decision.spec.groups > 1:
        return "the convolution's channels come group by group"
    return why_not(
        writing.shuffle, decision.spec.stride, layer.input_size, layer.opset, apart=apart
    )


def _not_accepted(found: str, profile: Profile, key: str | None) -> Refusal:
    if key is None:
        return Refusal(
            f"it cannot be written so ({found})",
            "the convolutions and the shuffle must fit its geometry, its sizes and the file's opset",
            "Omit `convolution` and `shuffle`, or exclude the layer",
        )
    return Refusal(
        f"no way to write it is accepted ({found})",
        f"the target {profile.name!r} says: {profile.line(key)}",
        "Choose another target, fix the sizes of the inputs, or exclude the layer",
    )


def _refused(decision: Replaced, refusal: Refusal) -> Decision:
    """The layer stays, with a sentence."""
    return stays(decision, "refused", refusal.sentence(decision.name))


def stays(decision: Replaced, verdict: Verdict, reason: str) -> Decision:
    """The decision that a layer stays as it is, kept or refused, in the place of one that replaces it."""
    found = decision.name, decision.op, verdict, None, reason, decision.spec
    return Decision(*found, upsampling=decision.upsampling)
