"""Plans: pure, printable, JSON both ways."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix import CheckpointError, ConvTransposeSpec, OptionError, Plan, RefusedError, convert
from deconvfix.errors import Refusal
from deconvfix.forms import FORMS
from deconvfix.forms.base import Need
from deconvfix.plan import Match, Options
from deconvfix.planning import make_plan
from tests.support.forms import options_of
from tests.support.kinds import KINDS, example, kinds_of, output_of
from tests.support.strategies import specs

OBSTACLE = Refusal("it is made of stone", "it must be soft", "Use another one")
# Forms that change the function of a layer, and what is said where there is nothing to fit them to.
CHANGING = [form.name for form in FORMS if not form.is_exact]
WEIGHTS_ALONE = (
    "this form changes what it computes, and there are no inputs to fit it to; inputs are needed: networks "
    "fitted to their weights alone lost 2 to 11 dB, and their colours. Give calibration inputs, use `fix`, "
    "or ask for init 'fit' by name."
)


def match(name, spec=None, **fields):
    spec = spec or ConvTransposeSpec.create(3, 5, (4, 4), stride=2, padding=1)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    fields = {"read_weight": lambda: weight} | fields
    return Match(name, f"ConvTranspose{spec.ndim}d", spec, "float32", **fields)


def decisions(plan):
    return {each.name: each.decision for each in plan.decisions}


@given(st.lists(specs(), max_size=3), st.sampled_from(["subpixel", "resize", "equalized", "notch"]))
def test_json_both_ways(found, to):
    matches = [match(f"layer{i}", spec) for i, spec in enumerate(found)]
    plan = make_plan(matches, Options(**options_of(to)))
    assert Plan.from_json(plan.to_json()) == plan


def test_every_spec_gets_the_exact_form():
    plan = make_plan([match("up")], Options())
    (decision,) = plan.replaced
    assert (decision.form, decision.exact, decision.settings.init) == ("subpixel", True, "exact")
    assert decision.macs_after == decision.macs_before


def test_include_and_exclude_are_globs():
    matches = [match("decoder.up1"), match("decoder.up2"), match("encoder.up1")]
    options = Options(include=("decoder.*",), exclude=("*.up2",))
    assert decisions(make_plan(matches, options)) == {
        "decoder.up1": "replaced",
        "decoder.up2": "kept",
        "encoder.up1": "kept",
    }


def test_a_predicate_selects():
    plan = make_plan([match("a"), match("b")], Options(), lambda name: name == "b")
    assert decisions(plan) == {"a": "kept", "b": "replaced"}


def test_an_include_that_matches_nothing_is_an_error():
    with pytest.raises(
        OptionError, match=r"'decodr\.\*' matches none of the 1 layers.*decoder\.up"
    ):
        make_plan([match("decoder.up")], Options(include=("decodr.*",)))


def test_obstacles_are_refusals_with_a_sentence():
    plan = make_plan([match("up", obstacle=OBSTACLE)], Options())
    assert plan.refused[0].reason == "up: it is made of stone; it must be soft. Use another one."


def test_layers_that_only_the_exact_form_fits():
    matches = [match("up", lacks={Need.STORED_WEIGHT: OBSTACLE})]
    assert decisions(make_plan(matches, Options())) == {"up": "replaced"}
    assert decisions(make_plan(matches, Options(to="resize", init="fit"))) == {"up": "refused"}


@pytest.mark.parametrize("to", CHANGING)
def test_a_fit_to_the_weights_alone_is_asked_for_by_name(to):
    (refused,) = make_plan([match("up")], Options(to=to)).refused
    assert refused.reason == f"up: {WEIGHTS_ALONE}"
    for init in ("fit", "calibrated", "tuned"):
        (decision,) = make_plan([match("up")], Options(to=to, init=init)).replaced
        assert (decision.form, decision.settings.init) == (to, init)


@pytest.mark.parametrize("to", CHANGING)
def test_what_stays_the_same_function_needs_no_inputs(to):
    """Equal taps make no grid, and are those of nearest upsampling."""
    spec = ConvTransposeSpec.create(3, 5, (2, 2), stride=2)
    same = match("same", spec, read_weight=lambda: np.ones(spec.weight_shape))
    plan = make_plan([match("up"), same, match("other")], Options(to=to, exclude=("other",)))
    assert plan.refused == (plan["up"],)
    assert plan["same"].exact
    assert plan["other"].decision == "kept"


@pytest.mark.parametrize("to", CHANGING)
def test_what_stands_in_the_way_of_every_fit_is_said_first(to):
    matches = [match("up", obstacle=OBSTACLE), match("own", lacks=dict.fromkeys(Need, OBSTACLE))]
    for refused in make_plan(matches, Options(to=to)).refused:
        assert (
            refused.reason
            == f"{refused.name}: it is made of stone; it must be soft. Use another one."
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", CHANGING)
def test_no_kind_of_model_is_fitted_to_its_weights_alone_unasked(to, kind):
    model, x = kinds_of("signal")[kind], example("signal")
    got = convert(model, to=to, example_inputs=(x,))
    assert len(got.plan.refused) == len(got.plan.decisions) == 2
    assert all(layer.reason == f"{layer.name}: {WEIGHTS_ALONE}" for layer in got.plan.decisions)
    assert np.array_equal(output_of(got.model, x), output_of(model, x))
    with pytest.raises(
        RefusedError, match=r"there are no inputs.*`strict` allows no refusal \(1 more\)"
    ):
        convert(model, to=to, example_inputs=(x,), strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", CHANGING)
@pytest.mark.parametrize(
    ("options", "init"),
    [
        ({"init": "fit"}, "fit"),
        ({"calibration": [(example("signal", 1),)]}, "calibrated"),
        ({"calibration": "normal"}, "calibrated"),
    ],
    ids=["by name", "inputs", "drawn"],
)
def test_every_kind_of_model_is_fitted_to_what_is_given(to, kind, options, init):
    model, x = kinds_of("signal")[kind], example("signal")
    got = convert(model, to=to, example_inputs=(x,), strict=True, **options)
    assert [layer.settings.init for layer in got.plan.replaced] == [init] * 2
    calibrated = [layer.reason.startswith("calibrated") for layer in got.report.layers]
    assert calibrated == [init == "calibrated"] * 2
    assert not np.array_equal(output_of(got.model, x), output_of(model, x))


def test_plans_are_found_by_name():
    plan = make_plan([match("a"), match("b")], Options(exclude=("b",)))
    assert plan["b"].decision == "kept"
    with pytest.raises(KeyError):
        plan["c"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("to", "magic"),
        ("interpolation", "cubic"),
        ("padding_mode", "circular"),
        ("init", "best"),
    ],
)
def test_unknown_values_are_named(option, value):
    with pytest.raises(OptionError, match=f"{option}: the value is '{value}'; one of"):
        Options(**{option: value})


def tampered(**changes):
    data = json.loads(make_plan([match("up")], Options()).to_json())
    data["decisions"][0] |= changes
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "other/1", "to": "subpixel", "decisions": []}',
        '{"format": "deconvfix.recipe/1", "to": "subpixel", "decisions": [1]}',
        tampered(form=None),
        tampered(spec={"in_channels": 1}),
    ],
    ids=["empty", "list", "object", "format", "numbers", "form", "spec"],
)
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(CheckpointError, match="recipe: it cannot be read"):
        Plan.from_json(text)


@pytest.mark.parametrize("changes", [{"form": "magic"}, {"decision": "eaten"}], ids=str)
def test_unknown_words_in_a_recipe_are_named(changes):
    with pytest.raises((CheckpointError, OptionError), match=r"magic|eaten"):
        Plan.from_json(tampered(**changes))
