"""Profiles: what comes with the package, what a file may hold, and how it is refused."""

from typing import get_args

import pytest

from deconvfix.errors import OptionError
from deconvfix.targets.profile import NO_LIMITS, profile_named, profiles
from deconvfix.targets.writing import Convolution, Shuffle, Writing

GOOD = """
title = "a chip"
measured = "in a test"

[max_rank]
value = 4
source = "its data sheet"

[prefer]
value = ["union/dcr", "phases/slices"]
source = "a measurement"
"""


@pytest.mark.parametrize("name", profiles())
def test_each_profile_says_where_its_lines_come_from(name):
    profile = profile_named(name)
    assert profile.title
    assert profile.measured
    assert all(profile.sources.values())
    for key in profile.sources:
        assert profile.sources[key] in profile.line(key)


def test_what_the_issue_names_is_there():
    named = "onnx onnxruntime openvino opencv ncnn mnn tract iree coreml tensorrt qnn litert"
    assert set(named.split()) < set(profiles())
    assert profile_named("onnx").writings(2) == NO_LIMITS.writings(2)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(GOOD)
    profile = profile_named(str(path))
    assert profile.name == "chip"
    assert profile.max_rank == 4
    # What is preferred is all that is written.
    assert profile.writings(3) == (Writing("union", "dcr"), Writing("phases", "slices"))
    assert profile.line("max_rank") == "max_rank = 4 (its data sheet)"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("max_rank", "most_axes"), "there is no key 'most_axes'"),
        (("value = 4", 'value = "4"'), "a whole number is needed"),
        (("value = 4", "value = true"), "a whole number is needed"),
        (("value = 4", "value = 0"), "a positive number is needed"),
        (('source = "its data sheet"', ""), "a value and a source"),
        (("union/dcr", "union/crt"), "'crt'"),
        (("[prefer]", "[prefer"), "line 9"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, change, found):
    path = tmp_path / "chip.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(OptionError, match="cannot be used as a profile") as error:
        profile_named(str(path))
    assert found in str(error.value)


@pytest.mark.parametrize("name", ["nobody", "missing.toml", "/dev/zero.toml"])
def test_what_is_not_there_is_said(name):
    with pytest.raises(OptionError, match="TOML file"):
        profile_named(name)


def test_every_writing_is_tried_where_none_is_preferred():
    found = NO_LIMITS.writings(3)
    assert len(found) == len(set(found)) == len(get_args(Convolution)) * len(get_args(Shuffle))
    assert found[:2] == (Writing("cropped", "crd"), Writing("cropped", "axes"))
    assert all(Writing.parse(str(writing)) == writing for writing in found)
