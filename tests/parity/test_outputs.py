"""Outputs end to end: one function for all kinds of models, and label maps in each of them."""

from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.errors import ModelError
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from deconvfix.parity.bounds import LIMIT
from deconvfix.parity.outputs import Case, Output, Patience, Rules, compare_outputs

RULES = Rules(
    constant="constant.",
    other_number="{actual} instead of {expected}.",
    not_repeatable="not repeatable.",
    flipped="{output} flips on {case}.",
)


def does_not_run(x):
    raise ModelError("model", "it is shy", "another input is needed", "Give one")


@dataclass
class Functions:
    """A pair of functions of an array; `noise` moves the numbers of the original."""

    before: object
    after: object
    cases: tuple = (Case("a", np.arange(3.0), given=True), Case("b", np.arange(3.0) + 1))
    rules: Rules = RULES
    modes: tuple = ("",)
    noise: tuple = (1e-9,)
    runs: list = field(default_factory=list)

    def original(self, inputs, mode):
        self.runs.append(mode)
        return outputs(self.before(inputs))

    def converted(self, inputs, mode):
        return outputs(self.after(inputs))

    def disturbed(self, inputs):
        return [outputs(self.before(inputs + scale)) for scale in self.noise]

    def name(self, index):
        return f"y{index}"

    def does_not_run_on(self, cases):
        return [f"not on {' or '.join(cases)}."]


def outputs(values):
    return [Output.of(np.asarray(value)) for value in values]


def double(x):
    return (2 * x,)


def test_equal_functions_agree_on_all_cases():
    found = compare_outputs(Functions(double, double))
    assert [(c.what, c.inputs, c.ok) for c in found.comparisons] == [
        ("y0", "a", True),
        ("y0", "b", True),
    ]
    assert found.problems == found.notes == ()
    assert [case.words for case in found.cases] == ["a", "b"]


@pytest.mark.parametrize(("error", "ok"), [(9e-9, True), (11e-9, True), (21e-9, False)])
def test_a_difference_is_measured_by_what_noise_does(error, ok):
    """Noise of 1e-9 moves the output by 2e-9; the limit is ten times that."""
    found = compare_outputs(Functions(double, lambda x: (2 * x + error,)))
    assert [comparison.ok for comparison in found.comparisons] == [ok, ok]
    assert found.comparisons[0].error_ratio == pytest.approx(error / 2e-9, rel=1e-3)


def test_a_rounding_factor_allows_for_a_runtime_that_rounds_differently():
    pair = Functions(double, lambda x: (2 * x + 21e-9,), rules=replace(RULES, rounding_factor=10))
    assert compare_outputs(pair).comparisons[0].error_ratio < LIMIT / 9


def test_an_original_that_does_not_run_at_all_is_an_error():
    with pytest.raises(ModelError, match="it is shy"):
        compare_outputs(Functions(does_not_run, double))


def test_a_case_on_which_the_original_does_not_run_is_noted():
    def shy(x):
        return double(x) if x[0] < 0.5 else does_not_run(x)

    found = compare_outputs(Functions(shy, double))
    assert found.notes == ("not on b.",)
    assert [case.words for case in found.cases] == ["a"]


def test_a_converted_model_that_does_not_run_is_an_error():
    with pytest.raises(ModelError, match="it is shy"):
        compare_outputs(Functions(double, does_not_run))


def test_an_original_that_is_not_repeatable_says_nothing():
    numbers = iter(range(100))
    found = compare_outputs(Functions(lambda x: (x + next(numbers),), double))
    assert found.comparisons == found.problems == ()
    assert found.notes == ("not repeatable.",)


def test_another_number_of_outputs_is_a_problem():
    found = compare_outputs(Functions(double, lambda x: (2 * x, x)))
    assert found.problems == ("2 instead of 1.",)


def test_the_first_mode_is_one_more_disturbed_run_for_the_others():
    """Here the modes differ by 1e-6, which noise of 1e-9 does not explain."""
    pair = Functions(double, double, modes=("plain", "fast"))
    plain = pair.original
    pair.original = lambda x, mode: plain(x + 1e-6 * (mode == "fast"), mode)
    found = compare_outputs(pair)
    assert [c.inputs for c in found.comparisons] == ["a, plain", "a, fast", "b, plain", "b, fast"]
    assert [c.error_ratio for c in found.comparisons] == pytest.approx([0, 1, 0, 1], abs=1e-3)


@pytest.mark.parametrize("patience", [{"first_run": 0.0}, {"per_case": 0.0}])
def test_slow_models_run_on_the_given_cases_alone(patience):
    given = Case("a", np.arange(3.0), given=True)
    cases = (given, replace(given, words="b"), Case("c", np.ones(3)), Case("d", np.ones(3)))
    slow = replace(RULES, patience=Patience(**patience, note="{count} left out."))
    found = compare_outputs(Functions(double, double, cases, slow))
    assert [case.words for case in found.cases] == ["a", "b"]
    assert found.notes == ("2 left out.",)


def labels(x):
    return ((x > 1 - 1e-12).astype(np.int64),)


def test_integers_must_be_equal():
    found = compare_outputs(Functions(labels, lambda x: (labels(x)[0] + 1,), noise=(-1e-15,)))
    assert not any(comparison.ok for comparison in found.comparisons)


@pytest.mark.parametrize("noted", [True, False])
def test_an_integer_that_rounding_flips_is_no_departure(noted):
    rules = RULES if noted else replace(RULES, flipped=None)
    pair = Functions(labels, lambda x: labels(x - 1e-9), rules=rules, noise=(-1e-9,))
    found = compare_outputs(pair)
    assert found.comparisons == ()
    notes = ("'y0' flips on a.", "'y0' flips on b.")
    assert found.notes == (notes if noted else ())


def test_an_integer_that_rounding_could_flip_is_compared_where_it_is_equal():
    found = compare_outputs(Functions(labels, labels, noise=(-1e-9,)))
    assert [comparison.ok for comparison in found.comparisons] == [True, True]


@pytest.mark.parametrize(("steps", "ok"), [(1, True), (10, True), (11, False)])
def test_quantised_values_move_by_steps(steps, ok):
    def quantised(x):
        return (np.floor(x).astype(np.uint8) + np.uint8(50),)

    def moved(x):
        return (quantised(x)[0] + np.uint8(steps),)

    pair = Functions(quantised, moved, rules=replace(RULES, quantised=True), noise=(-1e-9,))
    assert [comparison.ok for comparison in compare_outputs(pair).comparisons] == [ok, ok]


ONES = np.ones(3)
EVIDENCE = {
    "varies in itself": (lambda x: (x,), (), ()),
    "varies from case to case": (lambda x: (ONES * x[0],), (), ()),
    "constant": (lambda x: (ONES,), ("constant.",), ()),
    "two constants, one of which varies": (lambda x: (ONES, x), (), ()),
    "a constant beside a label map": (lambda x: (ONES, x.astype(int)), ("constant.",), ()),
    "a label map": (lambda x: (x.astype(int),), (), ()),
    "one label": (lambda x: (x.astype(int) * 0,), (), ("integers and constant",)),
    "a constant NaN": (lambda x: (ONES * np.nan,), ("constant.",), ()),
    "empty": (lambda x: (x[:0],), (), ("outputs are empty",)),
    "a constant beside nothing": (lambda x: (x[:0], ONES), ("constant.",), ()),
}


@pytest.mark.parametrize(("function", "problems", "notes"), EVIDENCE.values(), ids=list(EVIDENCE))
def test_what_is_evidence(function, problems, notes):
    found = compare_outputs(Functions(function, function))
    assert found.problems == problems
    assert len(found.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, found.notes, strict=True))


def test_empty_outputs_are_no_comparison_but_other_shapes_are():
    assert compare_outputs(Functions(lambda x: (x[:0],), lambda x: (x[:0],))).comparisons == ()
    found = compare_outputs(Functions(lambda x: (x[:0],), lambda x: (x,)))
    assert not any(comparison.ok for comparison in found.comparisons)


# --- label maps through the public functions ----------------------------------------------------


class Segmenter(nn.Module):
    """A label map, and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose2d(3, 5, 4, 2, 1)

    def forward(self, x):
        return self.up(x).argmax(1)


class Gate(Segmenter):
    """Floating-point outputs that say nothing."""

    def forward(self, x):
        return super().forward(x) * 0.0 + 1


X = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def program_of(model):
    return torch.export.export(model.eval(), (X,))


KINDS = {"module": lambda model: model, "program": program_of}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_model_that_gives_a_label_map_is_proven(kind):
    model = kind(Segmenter())
    conversion = deconvfix.convert(model, example_inputs=(X,))
    report = conversion.report.parity
    assert report.ok
    assert any(comparison.what == "output 0" for comparison in report.comparisons)
    assert deconvfix.verify(model, conversion.model, (X,)).ok


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_wrong_label_map_fails(kind):
    class Other(Segmenter):
        def forward(self, x):
            return self.up(x).argmin(1)

    report = deconvfix.verify(kind(Segmenter()), kind(Other()), (X,))
    assert not report.ok
    assert report.first_departure is None
    assert not any(c.ok for c in report.comparisons if c.what == "output 0" and c.inputs != "zeros")


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_constant_floats_still_fail(kind):
    report = deconvfix.verify(kind(Gate()), kind(Gate()), (X,))
    assert not report.ok
    assert report.problems[0].startswith("All outputs are constant on all inputs")


def test_a_label_map_that_does_not_depend_on_the_layers_is_noted():
    class One(Segmenter):
        def forward(self, x):
            return super().forward(x) * 0

    report = deconvfix.convert(One(), example_inputs=(X,)).report.parity
    assert report.ok
    assert any("integers and constant" in note for note in report.notes)
    assert any("hardly depend on the converted layers" in note for note in report.notes)


def test_an_exported_label_map_is_proven(tmp_path):
    path = tmp_path / "labels.onnx"
    report = deconvfix.export_onnx(Segmenter(), path, (X,), dynamic_shapes={"x": {0: "n", 2: "h"}})
    assert report.parity.ok
    assert len(report.shapes) > 2


def test_a_wrong_exported_label_map_fails(tmp_path):
    path = tmp_path / "labels.onnx"
    deconvfix.export_onnx(Segmenter(), path, (X,))
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    onnx.save(model, path)
    assert not verify_onnx(Segmenter(), path, (X,)).ok


def test_exported_constant_floats_still_fail(tmp_path):
    with pytest.raises(deconvfix.ExportError, match="All outputs are constant"):
        deconvfix.export_onnx(Gate(), tmp_path / "gate.onnx", (X,))


def test_complex_outputs_are_compared_with_the_pairs_that_the_file_has(tmp_path):
    class Spectrum(Segmenter):
        def forward(self, x):
            return torch.fft.rfft2(self.up(x))

    path = tmp_path / "spectrum.onnx"
    assert deconvfix.export_onnx(Spectrum(), path, (X,)).parity.ok
    other = Spectrum()
    with torch.no_grad():
        other.up.weight[0, 0, 0, 0] += 1e-2
    assert not verify_onnx(other, path, (X,)).ok


FRUGAL = replace(RULES, patience=Patience(frugal=True, note="{count} left out."))


def test_where_runs_are_dear_each_model_runs_once_on_what_was_given():
    pair = Functions(double, double, rules=FRUGAL, noise=(does_not_run,))
    found = compare_outputs(pair)
    assert [case.words for case in found.cases] == ["a"]
    assert pair.runs == [""]
    assert found.notes == ("1 left out.",)
    assert all(comparison.ok for comparison in found.comparisons)


@pytest.mark.parametrize(("error", "ok"), [(1e-9, True), (1e-7, False)])
def test_where_runs_are_dear_noise_is_asked_for_only_beyond_one_rounding(error, ok):
    pair = Functions(double, lambda x: (2 * x + error,), rules=FRUGAL)
    found = compare_outputs(pair)
    assert [comparison.ok for comparison in found.comparisons] == [ok]
    assert found.comparisons[0].error_ratio == pytest.approx(error / 2e-9, rel=1e-3)
    # Once more only where the answer is no: another answer then would say nothing.
    assert len(pair.runs) == (1 if ok else 2)


def test_where_runs_are_dear_an_original_that_is_not_repeatable_says_nothing():
    count = iter(range(9))
    pair = Functions(lambda x: (x + next(count),), double, rules=FRUGAL, noise=())
    found = compare_outputs(pair)
    assert found.notes == ("not repeatable.",)
    assert not found.comparisons


def test_what_the_original_gave_before_is_not_computed_again():
    given = np.arange(3.0)
    case = Case("a", given, given=True, expected=outputs(double(given)))
    pair = Functions(
        double, lambda x: (2 * x + 1,), (case,), rules=replace(FRUGAL, not_repeatable=None)
    )
    found = compare_outputs(pair)
    assert [comparison.ok for comparison in found.comparisons] == [False]
    assert pair.runs == []
