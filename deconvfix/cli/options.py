"""The options of the commands as frozen dataclasses: each field is an option, and a command gets an instance.

What an option means is said where it is declared (`core.options`): the options of a conversion in `Request`
and `Tuning`, those that only the command line has here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import click

from deconvfix.cli.source import Source, parse_arch_kwargs
from deconvfix.core.options import Option, option, options_of, same_as
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import FORMS
from deconvfix.forms.base import Init
from deconvfix.request import Request
from deconvfix.runtimes.registry import RUNTIMES
from deconvfix.targets.writing import Convolution, Shuffle, Structure

__all__ = [
    "FILE",
    "BenchOptions",
    "ConvertOptions",
    "ExportOptions",
    "FixOptions",
    "InspectOptions",
    "ReportOptions",
    "SourceOptions",
    "VerifyOptions",
    "taken_from",
    "takes",
]

Command = TypeVar("Command", bound=Callable[..., Any])
Taken = TypeVar("Taken")
FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class SourceOptions:
    """What builds a model, and inputs for it."""

    arch: str | None = option(
        None,
        "The code that builds the model; needed for checkpoints. Or timm:NAME, monai:NAME, and hf:CLASS for "
        "a folder of transformers or diffusers.",
        metavar="MODULE:CALLABLE",
    )
    arch_kwargs: str = option("{}", "Keyword arguments for it, as a JSON object.", metavar="JSON")
    state_key: str | None = option(
        None, "Where the weights are in a nested checkpoint, e.g. params_ema.", metavar="KEY"
    )
    inputs: tuple[str, ...] = option(
        (),
        "An input of the model, e.g. x=1x3x64x64 or ids=1x77:int64. Repeatable.",
        metavar="NAME=SHAPE[:DTYPE]",
        flag="--input",
    )
    trust: bool = option(
        False,
        "Allow a .pt2 file to run code while loading. Only for files that you made yourself.",
    )
    inputs_file: Path | None = option(
        None, "Inputs of the model, one array for each.", metavar="FILE.npz", flag="--inputs"
    )
    timeout: float = option(
        600.0,
        "Time limit for each run of a file in a runtime, which has a process of its own.",
        metavar="SECONDS",
    )

    def source(self, path: Path, dynamic: tuple[str, ...] = ()) -> Source:
        """The model file with these options.

        Raises:
            OptionError: If the keyword arguments are no JSON object.
        """
        return Source(
            path,
            self.arch,
            parse_arch_kwargs(self.arch_kwargs),
            self.state_key,
            self.inputs,
            self.inputs_file,
            dynamic,
            self.trust,
        )


@dataclass(frozen=True)
class ReportOptions:
    """What every command prints."""

    as_json: bool = option(False, "Print one JSON object on stdout, nothing else.", flag="--json")


@dataclass(frozen=True)
class _ExportedOptions:
    """What concerns an ONNX file that is exported."""

    dynamic: tuple[str, ...] = option(
        (),
        "Axes of an input that may change in the ONNX file, e.g. x=0,2,3. Repeatable.",
        metavar="NAME=AXES",
    )
    opset: int | None = option(None, "ONNX opset, 18 or newer. Default: 18.")
    force: bool = option(False, "Replace existing files.")


@dataclass(frozen=True)
class InspectOptions(ReportOptions):
    """The options of `deconvfix inspect`."""

    sample_rate: float | None = option(
        None,
        "Sample rate of the sound that the model generates: frequencies are given in Hz.",
        metavar="HZ",
    )
    gradients: bool = option(
        False, "Also list the convolutions whose gradients have a grid, for training a new model."
    )


@dataclass(frozen=True)
class VerifyOptions(ReportOptions):
    """The options of `deconvfix verify`."""

    min_snr: float | None = option(
        None,
        "Signal-to-noise ratio that each output must have against BEFORE, for files that are not the same "
        "function, such as int8 against float.",
        metavar="DB",
    )
    atol: float | None = option(
        None, "Allowed difference of each number: --atol + --rtol * |BEFORE|.", metavar="NUMBER"
    )
    rtol: float | None = option(None, "The same, relative to BEFORE.", metavar="NUMBER")
    runtime: str | None = option(
        None,
        "Run both ONNX files in the runtime where they are deployed, and compare them with BEFORE in ONNX "
        "Runtime.",
        metavar="|".join(RUNTIMES),
    )


@dataclass(frozen=True)
class BenchOptions(ReportOptions):
    """The options of `deconvfix bench`."""

    repeats: int | None = option(
        None,
        "Timed runs of each model; 20 by default. With --runtime, how often each is loaded and timed; by "
        "default until the verdict is clear, for a minute at most.",
    )
    threads: int = option(1, "Threads that each model may use.", minimum=1)
    runtime: str | None = option(
        None, "Time both ONNX files in this runtime.", metavar="|".join(RUNTIMES)
    )


@dataclass(frozen=True)
class ExportOptions(_ExportedOptions, ReportOptions):
    """The options of `deconvfix export`."""

    output: Path | None = option(None, "The file to write.", flag="-o")


@dataclass(frozen=True)
class ConvertOptions(_ExportedOptions, ReportOptions):
    """The options of `deconvfix convert`, in the order of its help."""

    output: Path | None = option(None, "The file to write.", flag="-o")
    to: str = same_as(Request, "to")
    interpolation: Interpolation = same_as(Request, "interpolation")
    padding_mode: PadMode | None = same_as(Request, "padding_mode")
    init: Init | None = same_as(Request, "init")
    seed: int = same_as(Request, "seed")
    calibration: str | None = option(
        None,
        "Inputs for the fits (--init calibrated, the default with them, and tuned): a .npz or .npy file of "
        "inputs, a folder of pictures or sounds, or a distribution to draw from.",
        metavar="PATH|normal|uniform",
    )
    samples: int = option(64, "Number of calibration inputs to read.")
    value_range: tuple[float, float] = option(
        (0.0, 1.0),
        "The values that black and white become in calibration pictures.",
        metavar="LOW HIGH",
    )
    grow: int = same_as(Request, "grow")
    reach: int = same_as(Request, "reach")
    strength: float = same_as(Request, "strength")
    target: str | None = same_as(Request, "target")
    convolution: Convolution | None = same_as(Request, "convolution")
    shuffle: Shuffle | None = same_as(Request, "shuffle")
    structure: Structure | None = same_as(Request, "structure")
    flat: str | None = option(
        None,
        "Constant inputs on which alone the grid has to go, such as silence: zeros, or files as for "
        "--calibration. Needs --calibration.",
        applies="keeps_layer",
        metavar="zeros|PATH",
    )
    memory: float = same_as(Request, "memory")
    curve: bool = option(
        False,
        "Also report how close the output stays, and how much ripple is left, at several strengths. Needs "
        "--calibration, and a fit for each strength.",
        applies="has_strength",
    )
    seconds: float = same_as(Tuning, "seconds")
    steps: int | None = same_as(Tuning, "steps")
    resume: Path | None = same_as(Tuning, "resume")
    train_all: bool = same_as(Tuning, "train_all")
    fold: bool | None = same_as(Request, "fold")
    prove: bool = option(
        False,
        "Also run the original and the converted file in the target's runtime, before anything is written "
        "(ONNX files only).",
    )
    threads: int = same_as(Request, "threads")
    layer_seconds: float = same_as(Request, "layer_seconds")
    include: tuple[str, ...] = same_as(Request, "include")
    exclude: tuple[str, ...] = same_as(Request, "exclude")
    strict: bool = same_as(Request, "strict")
    dry_run: bool = option(False, "Plan only; write nothing but the --recipe.")
    recipe: Path | None = option(
        None, "A plan to carry out; with --dry-run, the file to write the plan to."
    )
    report_file: Path | None = option(
        None,
        "Write the report to this file, as .json or .html.",
        metavar="FILE",
        flag="--report",
    )
    sample_rate: float | None = same_as(Request, "sample_rate")
    samples_curve: bool = option(
        False,
        "Also fit to a quarter and to half of the samples, and report how close each fit comes on held-out "
        "ones. Needs --calibration.",
    )


@dataclass(frozen=True)
class FixOptions(ReportOptions):
    """The options of `deconvfix fix`."""

    output: Path | None = option(None, "The file to write, of the same kind.", flag="-o")
    data: str | None = option(
        None,
        "Real inputs: a folder of pictures or sounds, a .npz or .npy file; or a distribution to draw "
        "latents from.",
        metavar="PATH|normal|uniform",
    )
    targets: str | None = option(
        None,
        "The true outputs for the data, where you have them: a .npy or .npz file. Quality is measured on "
        "them.",
        metavar="PATH",
    )
    samples: int = option(256, "Number of inputs to read.")
    value_range: tuple[float, float] = option(
        (0.0, 1.0),
        "The values that black and white become in pictures.",
        metavar="LOW HIGH",
    )
    seconds: float = option(60.0, "Time for all candidates together.")
    max_cost: float = option(1.3, "Most operations of a run, relative to the original's.")
    seed: int = option(0, "Seed of all that is drawn.")
    sample_rate: float | None = same_as(InspectOptions, "sample_rate")
    explain: bool = option(False, "Tell the choice in a paragraph.")
    report_file: Path | None = option(
        None, "Write the report, as JSON or as a page.", metavar="FILE", flag="--report"
    )
    force: bool = option(False, "Replace existing files.")


def takes(declared: type, name: str) -> Callable[[Command], Command]:
    """Gives a command the options of a dataclass; it gets an instance of it as the argument `name`."""
    own = declared.__annotations__
    known = [found for found in fields(declared) if found.name in options_of(declared)]
    known.sort(key=lambda found: found.name not in own)  # what is common to the commands comes last

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(*args: Any, **typed: Any) -> Any:
            values = {found.name: typed.pop(found.name) for found in known}
            return command(*args, **{name: declared(**values)}, **typed)

        wrapped: Any = called
        hints = get_type_hints(declared)
        for found in reversed(known):
            declaration = options_of(declared)[found.name]
            wrapped = _click_option(found, hints[found.name], declaration)(wrapped)
        result: Command = wrapped
        return result

    return decorate


def _click_option(known: Field[Any], hint: Any, declaration: Option) -> Callable[[Any], Any]:
    """A field as an option of click: its type from the annotation, its help with the forms it is for."""
    flags = [declaration.flag or f"--{known.name.replace('_', '-')}", known.name]
    if declaration.flag == "-o":
        flags.insert(1, f"--{known.name}")
    default = None if known.default is MISSING else known.default
    settings: dict[str, Any] = {"help": _help(declaration), "metavar": declaration.metavar}
    kind = _without_none(hint)
    if kind is bool and hint is not bool:
        flags[0] += f"/--no-{known.name.replace('_', '-')}"
        return click.option(*flags, default=None, **settings)
    if kind is bool:
        return click.option(*flags, is_flag=True, **settings)
    if kind == tuple[str, ...]:
        return click.option(*flags, multiple=True, **settings)
    settings |= {"default": default, "show_default": default is not None}
    if default is None:
        del settings["default"], settings["show_default"]
    return click.option(*flags, type=_click_type(known.name, kind, declaration), **settings)


def _without_none(hint: Any) -> Any:
    """The type of an option that may be left out."""
    if get_origin(hint) in (Union, UnionType):
        [kind] = [part for part in get_args(hint) if part is not NoneType]
        return kind
    return hint


def _click_type(name: str, kind: Any, declaration: Option) -> Any:
    if name == "to":
        return click.Choice(Request.may_become)
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is tuple:
        return get_args(kind)
    if declaration.minimum is not None:
        return click.IntRange(min=declaration.minimum)
    return FILE if kind is Path else kind


def _help(declaration: Option) -> str:
    """The help text, with the names of the forms that the option is for."""
    if declaration.applies is None:
        return declaration.help
    names = ", ".join(form.name for form in FORMS if getattr(form, declaration.applies))
    first, dot, rest = declaration.help.partition(".")
    return f"{first} ({names}){dot}{rest}"


def taken_from(declared: type[Taken], given: object, **others: object) -> Taken:
    """An instance of a dataclass whose fields are attributes of `given`, or among `others`."""
    names = [known.name for known in fields(cast(Any, declared)) if known.init]
    found = {name: getattr(given, name) for name in names if hasattr(given, name)}
    return declared(**found | others)
