"""The forms against the definition, for every geometry."""

import pytest
from hypothesis import given

from deconvfix import ConvTransposeSpec, SpecError
from tests.support.strategies import cases, specs


@given(cases())
def test_output_size_is_that_of_the_definition(case):
    assert case.spec.output_size(case.x.shape[2:]) == case.expected.shape[2:]


@given(specs())
def test_plain_data_both_ways(spec):
    assert ConvTransposeSpec.from_dict(spec.to_dict()) == spec


def test_shorthand_stands_for_every_axis():
    spec = ConvTransposeSpec.create(4, 6, 3, ndim=2, stride=2, padding=(1, (0, 2)), groups=2)
    assert spec.kernel_size == (3, 3)
    assert spec.stride == (2, 2)
    assert spec.padding == ((1, 1), (0, 2))
    assert spec.weight_shape == (4, 3, 3, 3)
    assert spec.macs_per_position() == 4 * 3 * 9


def test_output_size_by_the_formula():
    spec = ConvTransposeSpec.create(
        1, 1, (3, 4), stride=(2, 3), padding=((0, 1), 2), output_padding=(1, 0), dilation=(2, 1)
    )
    assert spec.output_size((5, 6)) == (4 * 2 + 5 - 1 + 1, 5 * 3 + 4 - 4)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"kernel_size": (1, 1, 1, 1)}, ["4 axes", "one, two or three"]),
        ({"kernel_size": 3}, ["`ndim` is missing"]),
        ({"stride": (1, 2, 3)}, ["`stride`", "3 entries"]),
        ({"stride": 0}, ["`stride` is (0, 0)", "at least 1"]),
        ({"dilation": 0}, ["`dilation`"]),
        ({"kernel_size": (0, 3)}, ["`kernel_size`"]),
        ({"output_padding": -1}, ["`output_padding`", "at least 0"]),
        ({"padding": -1}, ["negative"]),
        ({"groups": 3}, ["groups must divide in_channels"]),
        ({"in_channels": 6, "groups": 3}, ["groups must divide out_channels"]),
        ({"groups": 0}, ["`groups` is 0"]),
        ({"in_channels": 0}, ["`in_channels` is 0"]),
    ],
    ids=str,
)
def test_contradictions_are_explained(change, fragments):
    values = {"in_channels": 4, "out_channels": 4, "kernel_size": (3, 3)} | change
    with pytest.raises(SpecError) as error:
        ConvTransposeSpec.create(**values)
    assert all(fragment in str(error.value) for fragment in fragments)


def test_output_size_needs_a_length_for_each_axis():
    with pytest.raises(SpecError, match="one length per spatial axis"):
        ConvTransposeSpec.create(1, 1, (3, 3)).output_size((5,))
