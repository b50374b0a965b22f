"""Options declared once: default, help, unit, and the forms they apply to.

Options are the fields of frozen dataclasses. What a field means is said where it is declared; the arguments
of the Python functions, their docstrings and the options of the command line come from there, or are
checked against it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from deconvfix.errors import OptionError

__all__ = ["Option", "documented", "known", "option", "options_of", "same_as"]

_KEY = "deconvfix.option"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What a field means.

    Attributes:
        help: A sentence or two for people at the command line and in Python.
        more: Further sentences, for Python alone.
        applies: Name of a fact about forms (an attribute of `forms.base.Form`): the option is for those
            that have it. None: for all.
        metavar: How the command line shows its value, with the unit; None: by its type.
        flag: The command line's name of it, where that is not the field's.
        minimum: The smallest value, for a number that has one.
    """

    help: str
    more: str = ""
    applies: str | None = None
    metavar: str | None = None
    flag: str | None = None
    minimum: int | None = None


def option(default: Any, help: str, **facts: Any) -> Any:
    """A field of a dataclass that is an option; see `Option` for the facts."""
    return field(default=default, metadata={_KEY: Option(help, **facts)})


def same_as(declared: type, name: str) -> Any:
    """A field that is the option `name` of another dataclass, with its default and help."""
    [found] = [known for known in fields(declared) if known.name == name]
    return field(default=found.default, metadata=found.metadata)


def options_of(declared: type) -> dict[str, Option]:
    """The options among the fields of a dataclass, by name."""
    return {
        known.name: known.metadata[_KEY] for known in fields(declared) if _KEY in known.metadata
    }


def documented(declared: type) -> Callable[[Function], Function]:
    """Puts what the options of a dataclass mean in the place of `{options}` in a function's docstring."""

    def document(function: Function) -> Function:
        entries = (
            textwrap.indent(
                textwrap.fill(
                    f"{name}: {declaration.help} {declaration.more}".rstrip(),
                    92,
                    subsequent_indent=" " * 4,
                ),
                " " * 8,
            )
            for name, declaration in options_of(declared).items()
        )
        function.__doc__ = (function.__doc__ or "").replace(
            " " * 8 + "{options}", "\n".join(entries)
        )
        return function

    return document


def known(name: str, value: object, values: Sequence[object]) -> None:
    """Checks an option.

    Raises:
        OptionError: If `value` is not among `values`.
    """
    if value not in values:
        named = ", ".join(repr(known_value) for known_value in values if known_value is not None)
        raise OptionError(
            name,
            f"the value is {value!r}",
            f"one of {named} is needed",
            f"Correct `{name}`",
        )
