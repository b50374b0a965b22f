"""What a target accepts, read from TOML: each line with its value and its source.

    title = "Core ML"
    measured = "not run: from its documentation, 2026-11"

    [max_rank]
    value = 5
    source = "coremltools 9.0, documentation of MIL's reshape"

Keys that a profile does not have set no limit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from deconvfix.core.options import known
from deconvfix.errors import DeconvfixError, OptionError
from deconvfix.files import note_read
from deconvfix.targets.writing import Convolution, PadsOf, Shuffle, Writing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NO_LIMITS", "Profile", "profile_named", "profiles"]

_LARGEST = 2**20
# The name of the profile without limits, which is no target at all.
_DEFAULT = "onnx"


@dataclass(frozen=True)
class Profile:
    """What may be written for a target.

    Attributes:
        name: Of its file.
        title: Of the runtime, for people.
        measured: What was run there, and when.
        opset: The newest version of the operators; None: any.
        forbidden: Operators that no file may have.
        forbidden_with_open_sizes: Operators that are not written into a file with open sizes; what a file
            has of its own is not held against it.
        max_rank: The most axes of a tensor.
        depth_to_space: The modes of DepthToSpace that are right there.
        block_sizes: Of DepthToSpace; None: any.
        conv_pads: Which convolutions may have pads: all, those of more than one tap, or none.
        resize_ranks: Ranks of tensors that Resize takes; None: any.
        open_sizes: Whether inputs may have open sizes.
        prefer: Writings of the exact form by the number of spatial axes, the best first. No others are
            written then.
        sources: Key to where its value comes from.
    """

    name: str = _DEFAULT
    title: str = "any runtime of ONNX files"
    measured: str = ""
    opset: int | None = None
    forbidden: tuple[str, ...] = ()
    forbidden_with_open_sizes: tuple[str, ...] = ()
    max_rank: int | None = None
    depth_to_space: tuple[str, ...] = ("CRD", "DCR")
    block_sizes: tuple[int, ...] | None = None
    conv_pads: PadsOf = "all"
    resize_ranks: tuple[int, ...] | None = None
    open_sizes: bool = True
    prefer: Mapping[int, tuple[Writing, ...]] = field(default_factory=dict, hash=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    def line(self, key: str) -> str:
        """A line of the profile with its source, for people."""
        value = getattr(self, key)
        if isinstance(value, Mapping):
            shown = "; ".join(f"{n}-D {_listed(names)}" for n, names in value.items())
        else:
            shown = _listed(value) if isinstance(value, tuple) else str(value)
        source = f" ({self.sources[key]})" if key in self.sources else ""
        return f"{key} = {shown}{source}"

    def writings(self, ndim: int) -> tuple[Writing, ...]:
        """The writings of the exact form for layers of `ndim` spatial axes, in the order to try them."""
        if ndim in self.prefer:
            return self.prefer[ndim]
        every = (Writing(c, s) for s in get_args(Shuffle) for c in get_args(Convolution))
        # The writing that is chosen without a target comes first.
        return tuple(dict.fromkeys((Writing("cropped", "crd"), Writing("cropped", "axes"), *every)))


NO_LIMITS = Profile()


def profiles() -> tuple[str, ...]:
    """The names of the profiles that come with the package."""
    files = resources.files(__package__).joinpath("profiles").iterdir()
    return tuple(
        sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
    )


def profile_named(target: str) -> Profile:
    """A profile by its name, or by the path of a TOML file.

    Raises:
        OptionError: If there is none, or the file is no profile.
    """
    if target in profiles():
        text = (
            resources.files(__package__).joinpath("profiles", f"{target}.toml").read_text("utf-8")
        )
        return _parsed(target, text)
    path = Path(target)
    if path.suffix != ".toml":
        raise OptionError(
            "target",
            f"there is no target {target!r}",
            f"one of {', '.join(profiles())}, or a TOML file, is needed",
            "Choose one (`deconvfix targets` tells what each is), or write a profile of your own",
        )
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise OSError("it is no regular file, or larger than any profile")
        note_read(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(target, str(error)) from error
    return _parsed(path.stem, text, where=target)


def _parsed(name: str, text: str, where: str | None = None) -> Profile:
    try:
        return _built(name, tomllib.loads(text))
    except (TypeError, ValueError, KeyError, RecursionError, DeconvfixError) as error:
        words = error.found if isinstance(error, DeconvfixError) else str(error)
        raise _unusable(where or name, words) from error


def _built(name: str, data: dict[str, Any]) -> Profile:
    given: dict[str, Any] = {"name": name}
    sources = {}
    for key in ("title", "measured"):
        if key in data:
            given[key] = _checked(key, data.pop(key), str)
    for key, line in data.items():
        if key not in _KINDS:
            raise ValueError(f"there is no key {key!r}; there are {', '.join(_KINDS)}")
        if not isinstance(line, dict) or set(line) != {"value", "source"}:
            raise ValueError(f"{key!r} needs a value and a source, and nothing else")
        given[key] = _KINDS[key](key, line["value"])
        sources[key] = _checked(key, line["source"], str)
    return Profile(**given, sources=sources)


def _checked(key: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{key!r} is {value!r}, and {_WORDS[kind]} is needed")
    return value


_WORDS = {str: "a text", int: "a whole number", bool: "true or false"}


def _number(key: str, value: Any) -> int:
    number: int = _checked(key, value, int)
    if number < 1:
        raise ValueError(f"{key!r} is {number}, and a positive number is needed")
    return number


def _list(kind: type) -> Any:
    def read(key: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{key!r} is {value!r}, and a list is needed")
        return tuple(_checked(key, one, kind) for one in value)

    return read


def _modes(key: str, value: Any) -> tuple[str, ...]:
    modes: tuple[str, ...] = _list(str)(key, value)
    for mode in modes:
        known(key, mode, ("CRD", "DCR"))
    return modes


def _pads(key: str, value: Any) -> PadsOf:
    known(key, value, get_args(PadsOf))
    pads: PadsOf = value
    return pads


def _writings(key: str, value: Any) -> dict[int, tuple[Writing, ...]]:
    """A list for layers of any number of axes, or lists by that number."""
    if isinstance(value, list):
        value = dict.fromkeys("123", value)
    if not isinstance(value, dict) or not set(value) <= set("123"):
        raise ValueError(f"{key!r} needs a list, or lists under the keys 1, 2 and 3")
    return {
        int(ndim): tuple(Writing.parse(name) for name in _list(str)(key, names))
        for ndim, names in value.items()
    }


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


_KINDS: dict[str, Any] = {
    "opset": _number,
    "forbidden": _list(str),
    "forbidden_with_open_sizes": _list(str),
    "max_rank": _number,
    "depth_to_space": _modes,
    "block_sizes": _list(int),
    "conv_pads": _pads,
    "resize_ranks": _list(int),
    "open_sizes": lambda key, value: _checked(key, value, bool),
    "prefer": _writings,
}
assert set(_KINDS) < {known_field.name for known_field in fields(Profile)}


def _unusable(target: str, found: str) -> OptionError:
    return OptionError(
        target,
        f"it cannot be used as a profile ({found})",
        "a TOML file is needed in which each key has a value and a source",
        "Correct it; docs/targets.md has the keys, and an example",
    )
