"""Options are declared once: signatures, docstrings and commands come from there, or agree with it."""

import inspect
from dataclasses import MISSING, fields

import click
import pytest

import deconvfix
from deconvfix.cli.main import main
from deconvfix.cli.options import ConvertOptions, taken_from, takes
from deconvfix.core.options import option, options_of
from deconvfix.curves.samples import samples_curve
from deconvfix.curves.strength import strength_curve
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import FORMS
from deconvfix.request import Request

# A curve measures the form that corrects a layer, and the fit that serves it best, unless told otherwise.
OWN_DEFAULTS = {"strength_curve": {"to", "init"}, "samples_curve": set()}


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def declared(kind):
    return {known.name: known.default for known in fields(kind)}


def test_convert_takes_the_declared_options_with_their_defaults():
    given = defaults(deconvfix.convert)
    assert set(given) == set(options_of(Request)) | {"plan"}
    assert given == {name: declared(Request)[name] for name in given}


@pytest.mark.parametrize("function", [strength_curve, samples_curve], ids=lambda f: f.__name__)
def test_curves_have_the_same_defaults(function):
    own = OWN_DEFAULTS[function.__name__]
    shared = {
        name: value
        for name, value in defaults(function).items()
        if name in declared(Request) and name not in own
    }
    assert len(shared) >= 3
    assert shared == {name: declared(Request)[name] for name in shared}


def test_the_docstring_tells_every_option():
    text = inspect.getdoc(deconvfix.convert)
    assert "{options}" not in text
    for name in options_of(Request):
        assert f"\n    {name}: " in text


def test_a_default_that_differs_is_seen():
    """The control: the comparison is by value."""

    def tampered(*, grow=1, strength=1.0):
        pass

    assert defaults(tampered) != {name: declared(Request)[name] for name in defaults(tampered)}


def test_commands_take_conversions_options_from_their_declaration():
    for source in (Request, Tuning):
        for name, told in options_of(source).items():
            if name in options_of(ConvertOptions) and name != "calibration" and source is Request:
                assert options_of(ConvertOptions)[name] is told


def test_every_option_of_every_command_has_help():
    for command in main.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name != "help":
                assert parameter.help, f"{command.name} {parameter.opts[0]}"
                assert parameter.help.rstrip().endswith("."), parameter.help


def test_help_names_the_forms_that_an_option_is_for():
    helps = {parameter.name: parameter.help for parameter in main.commands["convert"].params[1:]}
    for name, told in options_of(ConvertOptions).items():
        if told.applies is not None:
            names = [form.name for form in FORMS if getattr(form, told.applies)]
            assert f"({', '.join(names)})" in helps[name]
    for form in FORMS:
        assert f"{form.name}: {form.summary}" in helps["to"]


def test_a_command_gets_an_instance_of_its_options():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Few:
        count: int = option(3, "How many.")
        name: str | None = option(None, "What it is called.")
        loud: bool = option(False, "Shout.")

    @click.command()
    @takes(Few, "few")
    def command(few):
        return few

    assert command.main([], standalone_mode=False) == Few()
    typed = ["--count", "5", "--name", "x", "--loud"]
    assert command.main(typed, standalone_mode=False) == Few(5, "x", True)
    with pytest.raises(click.UsageError):
        command.main(["--count", "many"], standalone_mode=False)


def test_requests_are_taken_from_what_has_the_same_names():
    options = ConvertOptions(to="notch", reach=7, include=("up*",))
    request = taken_from(Request, options, calibration="normal")
    assert (request.to, request.reach, request.include) == ("notch", 7, ("up*",))
    assert request.calibration == "normal"
    assert all(known.default is not MISSING for known in fields(Request))
