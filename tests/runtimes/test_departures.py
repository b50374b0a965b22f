"""Which layer is not right in a runtime, one by one."""

import onnx_ir as ir
import pytest

import deconvfix
from deconvfix.runtimes.departures import departures
from tests.support.onnx_files import net


@pytest.fixture(autouse=True)
def named(fakes):
    """All fakes can be named."""


def sentences(runtime, **options):
    proto = net(shape=(1, 3, 6, 5))
    plan = deconvfix.convert(proto, verify=False, **options).plan
    return list(departures(runtime, ir.from_proto(proto), plan, None, 60))


def test_the_layers_that_a_runtime_gets_wrong_are_named():
    # up1 has unequal strides, and no DepthToSpace.
    [words] = sentences("WrongCrd")
    assert words.startswith("up2 is wrong there: y differs by 1 on")


def test_nothing_is_said_of_right_ones():
    assert sentences("Reordered") == ["Each layer alone is right there."]


def test_a_changed_function_is_compared_with_itself():
    assert sentences("Reordered", to="resize", init="fit") == ["Each layer alone is right there."]
    assert len(sentences("WrongWritings", to="resize", init="fit")) == 2
