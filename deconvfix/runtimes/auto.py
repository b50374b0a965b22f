"""`--to auto`: for each layer the fastest of itself and its writings, by measurement in the target's runtime.

Each layer is written as a model of its own, with what follows it element by element, in every writing that
the target accepts, and all of these run in turns. A first load of each sorts out what is clearly slower; the
rest is measured until it is clear (`timing.time_in`). A writing is taken where it is faster with confidence
and gives the same values as ONNX Runtime on the original; in doubt the layer stays. Where the runtime refuses
the layer itself, or gets it wrong, the fastest writing that is right is taken, whatever its speed. At the end
the whole model is timed, because a layer that is faster alone may keep its neighbours from being fused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from deconvfix.errors import ModelError, Refusal
from deconvfix.files import scratch_folder
from deconvfix.forms import form
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.for_target import Choices, choices_of, stays, tails_told
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.nodes import plain
from deconvfix.frontends.onnx.surgery import Surgeon
from deconvfix.frontends.onnx.tail import tail_of
from deconvfix.frontends.onnx.values import is_quantizer
from deconvfix.plan import Decision, Plan, Replaced
from deconvfix.runtimes.alone import Alone, feed_of, layer_alone, layer_shapes, save
from deconvfix.runtimes.cache import Cache, Key, cpu_model
from deconvfix.runtimes.proof import Fared, judge_in
from deconvfix.runtimes.registry import RUNTIMES, runtime_at, runtime_of
from deconvfix.runtimes.timing import Timed, time_in, version_of
from deconvfix.runtimes.verdict import LOOKS, Verdict, compare

__all__ = ["timed_plan"]

_LOG = logging.getLogger("deconvfix.auto")
# What a first load finds slower than this is not measured further, and so many writings are at most.
_PROMISING, _MOST = 0.9, 4
# About as many runs of a file as one load takes: to fill caches, to see how long one is, and in the rounds.
_RUNS = 10
_KEEP = "keep"
# Seconds that loading a file, or one sample of its runs, may take.
_LIMIT = 120.0


def timed_plan(
    model: ir.Model, plan: Plan, example_inputs: Any | None, *, threads: int, seconds: float
) -> tuple[Plan, tuple[str, ...]]:
    """A plan in which each layer is what is fastest in the target's runtime: itself, or a writing.

    Args:
        model: The model; it is not changed.
        plan: All layers that can have the exact form, replaced by it.
        example_inputs: Give the sizes of open axes, and what the whole model is timed on.
        threads: Of the runtime.
        seconds: For each geometry, about.

    Returns:
        The plan, an ordinary one, and sentences about what was measured.

    Raises:
        OptionError: If the target has no runtime here, or it is not installed.
        ModelError: If the model does not run on the inputs.
    """
    plan = replace(plan, to=form(plan.to).name)
    measured = _Measurements(plan, runtime_of(plan.target), threads, seconds)
    draft = plain(model).clone()
    layers = {layer.name: layer for layer in find_layers(draft)}
    feed = feed_of(model, example_inputs)
    shapes, fixed = layer_shapes(draft, [layers[decision.name] for decision in plan.replaced], feed)
    choices = choices_of(model, plan, plan.profile)
    decisions: list[Decision] = []
    for decision in plan.decisions:
        if not isinstance(decision, Replaced):
            decisions.append(decision)
            continue
        layer = layers[decision.name]
        refusal = _not_measured(layer, shapes.get(decision.name))
        if refusal is not None:
            decisions.append(stays(decision, "refused", refusal.sentence(decision.name)))
            continue
        single = layer_alone(
            draft, layer, shapes[decision.name], fixed_batch=decision.name in fixed
        )
        decided = measured.decide(decision, choices[decision.name], single)
        _LOG.info("%s: %s (%s)", decision.name, decided.decision, decided.reason)
        decisions.append(decided)
    plan, notes = measured.whole(model, replace(plan, decisions=tuple(decisions)), feed)
    return tails_told(Surgeon(draft, plan.profile), layers, plan), (*notes, *measured.cache.notes)


@dataclass(frozen=True)
class _Outcome:
    """What was found for a geometry.

    Attributes:
        writing: The one that is taken; None: the layer stays.
        reason: A clause.
        saved: Share of the layer's time that it saves.
        rescued: Whether the layer itself does not do there.
        refusal: Why neither does.
    """

    writing: str | None
    reason: str
    saved: float = 0.0
    rescued: bool = False
    refusal: Refusal | None = None


class _Measurements:
    """All measurements for one model in one runtime.

    Args:
        plan: Says what the target is.
        runtime: Its name.
        threads: Of the runtime.
        seconds: For each geometry, about.
    """

    def __init__(self, plan: Plan, runtime: str, threads: int, seconds: float) -> None:
        self.target, self.runtime, self.threads, self.seconds = (
            plan.target,
            runtime,
            threads,
            seconds,
        )
        self.version = version_of(runtime)
        self.title = f"{runtime_at(RUNTIMES[runtime]).title} {self.version}".rstrip()
        self.cache, self.cpu = Cache(), cpu_model()
        self.outcomes: dict[str, _Outcome] = {}
        # What the writing of each layer saves, in multiply-accumulates of the layer itself.
        self.saved: dict[str, float] = {}

    def decide(self, decision: Replaced, choices: Choices, single: Alone) -> Decision:
        """The decision for a layer; one of the same geometry is measured once."""
        writings = {_name(one): one for one in choices.writings}
        key = f"{single.geometry} {choices.keep} {','.join(writings)}"
        if key not in self.outcomes:
            try:
                self.outcomes[key] = self._measured(writings, choices.keep, single)
            except ModelError as error:
                refusal = Refusal(
                    error.found, "a layer is measured by running it alone", error.todo
                )
                self.outcomes[key] = _Outcome(None, "", refusal=refusal)
        found = self.outcomes[key]
        if found.refusal is not None:
            return stays(decision, "refused", found.refusal.sentence(decision.name))
        if found.writing is None:
            return stays(decision, "kept", found.reason)
        if not found.rescued:
            positions = float(np.prod(single.feed["x"].shape[2:]))
            self.saved[decision.name] = decision.spec.macs_per_position() * positions * found.saved
        return replace(writings[found.writing], reason=f"{decision.reason}; {found.reason}")

    def _measured(self, writings: Mapping[str, Replaced], keeps: bool, single: Alone) -> _Outcome:
        with scratch_folder() as folder:
            files = {_KEEP: save(single.model, folder / "keep.onnx")}
            for number, (name, decision) in enumerate(writings.items()):
                written = single.converted(decision, self.target)
                files[name] = save(written, folder / f"{number}.onnx")
            judge = judge_in(self.runtime, files[_KEEP], [single.feed], _LIMIT)
            own = judge(files[_KEEP])
            # Outputs that are all alike, as of a weight of zeros, prove nothing and are not wrong either.
            if keeps and own.status in ("right", "unproven"):
                return self._by_time(files, single, judge)
            right = {name: file for name, file in files.items() if name != _KEEP}
            right = {name: file for name, file in right.items() if judge(file).status == "right"}
            what = _what_it_does(own) if keeps else "does not accept a ConvTranspose"
            if not right:
                return _Outcome(
                    None,
                    "",
                    refusal=Refusal(
                        f"{self.title} {what}, and gets no writing of it right",
                        "one of them must be right there",
                        "Choose another target, or exclude the layer",
                    ),
                )
            timed = self._time(right.values(), single.feed, repeats=3)
            medians = {
                name: float(np.median(one.times))
                for name, one in zip(right, timed, strict=True)
                if one.times.size
            }
            fastest = min(
                medians or dict.fromkeys(right, 0.0), key=lambda name: medians.get(name, 0)
            )
            reason = f"{self.title} {what}; {fastest} is right, and the fastest that is"
            return _Outcome(fastest, reason, rescued=True)

    def _by_time(self, files: Mapping[str, Path], single: Alone, judge: Any) -> _Outcome:
        verdicts = self._remembered(files, single.geometry)
        if verdicts is None:
            verdicts = self._verdicts(files, single)
            self._remember(files, single.geometry, verdicts)
        ranked = sorted(verdicts, key=lambda name: -verdicts[name].ratio)
        wrong = []
        for name in ranked:
            verdict = verdicts[name]
            if not verdict.faster:
                break
            fared: Fared = judge(files[name])
            if fared.status == "right":
                reason = f"{name} is {verdict.words()} in {self.title} ({_span(verdict)})"
                return _Outcome(name, reason, saved=1 - 1 / verdict.ratio)
            wrong.append(f"{name} is faster, and {self.title} {_what_it_does(fared)}")
        left = [name for name in ranked if not verdicts[name].faster]
        words = [*wrong]
        if left:
            verdict = verdicts[left[0]]
            known = verdict.loads >= LOOKS[0]
            words.append(
                f"the fastest{' other' if wrong else ''} writing, {left[0]}, is "
                f"{'slower' if verdict.slower else 'no faster'} in {self.title} ({_span(verdict)})"
                if known
                else f"{verdict.loads} loads of {left[0]} tell nothing yet: more seconds are needed"
            )
        return _Outcome(None, "; ".join(words) or f"no writing runs in {self.title}")

    def _verdicts(self, files: Mapping[str, Path], single: Alone) -> dict[str, Verdict]:
        """What may be faster, measured; empty if nothing runs."""
        timed = self._time(files.values(), single.feed, repeats=1)
        seconds = {
            name: float(np.median(one.times))
            for name, one in zip(files, timed, strict=True)
            if one.times.size
        }
        own = seconds.pop(_KEEP, None)
        if own is None or not seconds:
            return {}
        ranked = sorted(seconds, key=seconds.__getitem__)
        some = [name for name in ranked if own / seconds[name] > _PROMISING][:_MOST] or ranked[:1]
        # The first of `LOOKS` must be reached, or nothing is known of any of them.
        while len(some) > 1 and self._cost([own, *(seconds[name] for name in some)]) > self.seconds:
            some.pop()
        paths = [files[name] for name in (_KEEP, *some)]
        most = max(self.seconds, 1.5 * self._cost([own, *(seconds[name] for name in some)]))
        keep, *others = self._time(paths, single.feed, seconds=most)
        return {
            name: compare(keep.times, one.times)
            for name, one in zip(some, others, strict=True)
            if one.times.size and keep.times.size
        }

    def _cost(self, seconds: Sequence[float]) -> float:
        return LOOKS[0] * _RUNS * sum(seconds)

    def _time(self, files: Any, feed: Feed, **how: Any) -> list[Timed]:
        return time_in(self.runtime, list(files), feed, threads=self.threads, limit=_LIMIT, **how)

    # --- what was measured before ---

    def _key(self, geometry: str, writing: str) -> Key:
        return Key(self.runtime, self.version, self.cpu, self.threads, geometry, writing)

    def _remembered(self, files: Mapping[str, Path], geometry: str) -> dict[str, Verdict] | None:
        """What was measured of these writings; None if they never were, all of them together."""
        if self.cache.get(self._key(geometry, _all_of(files))) is None:
            return None
        found = {name: self.cache.get(self._key(geometry, name)) for name in files}
        return {name: verdict for name, verdict in found.items() if verdict is not None}

    def _remember(
        self, files: Mapping[str, Path], geometry: str, verdicts: Mapping[str, Verdict]
    ) -> None:
        if not verdicts or not all(np.isfinite(verdict.high) for verdict in verdicts.values()):
            return
        for name, verdict in verdicts.items():
            self.cache.put(self._key(geometry, name), verdict)
        best = max(verdicts.values(), key=lambda verdict: verdict.ratio)
        self.cache.put(self._key(geometry, _all_of(files)), best)

    # --- the whole model ---

    def whole(self, model: ir.Model, plan: Plan, feed: Feed | None) -> tuple[Plan, tuple[str, ...]]:
        """Takes back what makes the whole model slower; the plan, and what was found."""
        if not plan.replaced or feed is None:
            return plan, ()
        notes: tuple[str, ...] = ()
        with scratch_folder() as folder:
            before = save(model, folder / "before.onnx")
            while True:
                after = save(FRONTEND.apply(model.clone(), plan), folder / "after.onnx")
                worse, words = self._pair(before, after, feed)
                on = f"{self.title} on {self.threads} thread{'s' if self.threads > 1 else ''}"
                said = f"The whole model in {on}: {words}."
                # Half of them at a time, those first that save the least.
                order = sorted(
                    (one.name for one in plan.replaced if one.name in self.saved),
                    key=self.saved.__getitem__,
                )
                if not worse or not order:
                    return plan, (*notes, said)
                back = set(order[: (len(order) + 1) // 2])
                notes += (f"{said} Taken back: {', '.join(sorted(back))}.",)
                plan = replace(
                    plan, decisions=tuple(_taken_back(one, back, words) for one in plan.decisions)
                )
                if not plan.replaced:
                    return plan, notes

    def _pair(self, before: Path, after: Path, feed: Feed) -> tuple[bool, str]:
        """Whether the converted model is worse: slower, or it does not run where the original does."""
        digest = hashlib.sha256()
        for path in (before, after):
            digest.update(path.read_bytes())
        shapes = {name: list(array.shape) for name, array in sorted(feed.items())}
        key = self._key(f"model {digest.hexdigest()} on {shapes}", "as planned")
        verdict = self.cache.get(key)
        if verdict is None:
            old, new = self._time((before, after), feed, seconds=3 * self.seconds)
            failed = [
                f"{what} does not run ({one.words})"
                for what, one in (("the original", old), ("the converted model", new))
                if one.words
            ]
            if failed:
                return not old.words, "; ".join(failed)
            verdict = compare(old.times, new.times)
            self.cache.put(key, verdict)
        return verdict.slower, f"{verdict.words()} ({_span(verdict)})"


def _taken_back(decision: Decision, names: set[str], words: str) -> Decision:
    if not isinstance(decision, Replaced) or decision.name not in names:
        return decision
    return stays(decision, "kept", f"faster alone, but not in the whole model: {words}")


def _name(decision: Replaced) -> str:
    """What is measured goes by it: also in the cache, where a reduced layer is another one."""
    settings = decision.settings
    writing = None if settings.shuffle is None else f"{settings.convolution}/{settings.shuffle}"
    structure = None if settings.structure == "none" else settings.structure
    return " ".join(filter(None, (structure, writing)))


def _all_of(files: Mapping[str, Path]) -> str:
    return f"the fastest of {', '.join(sorted(name for name in files if name != _KEEP))}"


def _span(verdict: Verdict) -> str:
    return f"{verdict.low:.2f} to {verdict.high:.2f}"


def _what_it_does(fared: Fared) -> str:
    words = f" ({fared.words})" if fared.words else ""
    does = {"wrong": "gets it wrong", "refused": "refuses it", "died": "dies of it"}
    return does.get(fared.status, f"is not proven right on it: {fared.status}") + words


def _not_measured(layer: Layer, shape: tuple[int, ...] | None) -> Refusal | None:
    x = layer.node.inputs[0]
    source = None if x is None else x.producer()
    if tail_of(layer).quantised or (source and is_quantizer(source, "DequantizeLinear")):
        return Refusal(
            "it is quantised",
            "layers are measured alone, as floating-point ones",
            "Convert this layer to 'subpixel', or exclude it",
        )
    if shape is None:
        return Refusal(
            "the size of its input is not known",
            "a layer is measured at its real size",
            "Give inputs (example_inputs=, or --inputs FILE.npz or --input NAME=SHAPE)",
        )
    return None
