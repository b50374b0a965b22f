"""Plans: pure, printable, JSON both ways."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix import CheckpointError, ConvTransposeSpec, OptionError, Plan
from deconvfix.errors import Refusal
from deconvfix.forms.base import Need
from deconvfix.plan import Match, Options, make_plan
from tests.support.strategies import specs

OBSTACLE = Refusal("it is made of stone", "it must be soft", "Use another one")


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
    plan = make_plan(matches, Options(to=to))
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
