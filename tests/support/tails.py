"""What follows a layer element by element or channel by channel, as nodes and by definition.

Integers stay integers, or become halves and quarters: results are compared with equality.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.support.onnx_models import tensor

EPS = 2.0**-10


@dataclass(frozen=True)
class Step:
    """One function of a map.

    Attributes:
        operators: Of its nodes, in order. The first one reads the map.
        stored: Operands of the first node, in the place where the map is None.
        attributes: Of the first node.
        joined: Whether the last node puts the map and what the first one gives together.
        meaning: The same in NumPy, of a map (N, C, *L).
    """

    operators: tuple[str, ...]
    stored: tuple[np.ndarray | None, ...]
    attributes: dict
    meaning: Callable[[np.ndarray], np.ndarray]
    joined: bool = False


def along(numbers, ndim):
    """Numbers for each channel, to broadcast over (N, C, *L)."""
    return np.asarray(numbers).reshape(-1, *(1,) * ndim)


@st.composite
def steps(draw, channels, ndim):
    """A step of any kind for a map of so many channels."""
    kind = draw(st.sampled_from(["plain", "operand", "prelu", "normalized", "joined"]))
    if kind == "plain":
        name, attributes, meaning = draw(st.sampled_from(PLAIN))
        return Step((name,), (None,), attributes, meaning)
    if kind == "joined":
        name, meaning = draw(st.sampled_from(JOINED))
        return Step(("Relu", name), (None,), {}, meaning, joined=True)
    if kind == "normalized":
        scale, shift, mean = (draw(numbers(channels)) for _ in range(3))
        root = np.array(
            draw(st.lists(st.sampled_from([1, 2]), min_size=channels, max_size=channels))
        )
        var = (root**2 - EPS).astype(np.float32)
        lines = [along(each, ndim) for each in (scale, shift, mean, root)]
        return Step(
            ("BatchNormalization",),
            (None, scale, shift, mean, var),
            {"epsilon": EPS},
            lambda x: (x - lines[2]) / lines[3] * lines[0] + lines[1],
        )
    one = draw(st.booleans())
    values = draw(numbers(1 if one else channels))
    shape = draw(st.sampled_from([(1,), (), (1,) * (ndim + 2)])) if one else (-1, *(1,) * ndim)
    line = along(values, ndim)
    values = values.reshape(draw(st.sampled_from([shape, (1, *shape)])) if not one else shape)
    if kind == "prelu":
        return Step(("PRelu",), (None, values), {}, lambda x: np.where(x < 0, x * line, x))
    name, function = draw(st.sampled_from(WITH_OPERAND))
    if name != "Div" and draw(st.booleans()):
        return Step((name,), (values, None), {}, lambda x: function(line, x))
    return Step((name,), (None, values), {}, lambda x: function(x, line))


def numbers(count):
    """So many powers of two up to 2, of both signs: products and quotients are exact."""
    return st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=count, max_size=count).map(
        lambda values: np.array(values, np.float32)
    )


PLAIN = [
    ("Relu", {}, lambda x: np.maximum(x, 0)),
    ("LeakyRelu", {"alpha": 0.25}, lambda x: np.where(x < 0, x / 4, x)),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, lambda x: np.clip(x / 4 + 0.5, 0, 1)),
    ("Abs", {}, np.abs),
    ("Neg", {}, np.negative),
    ("Identity", {}, lambda x: x),
]

JOINED = [("Mul", lambda x: x * np.maximum(x, 0)), ("Add", lambda x: x + np.maximum(x, 0))]

WITH_OPERAND = [
    ("Add", np.add),
    ("Sub", np.subtract),
    ("Mul", np.multiply),
    ("Div", np.divide),
]


def tails(channels, ndim):
    """One to three steps, of which at most one multiplies a map by itself."""
    several = st.lists(steps(channels, ndim), min_size=1, max_size=3)
    return several.filter(lambda found: sum(step.joined for step in found) < 2)


def meaning_of(tail, y):
    """What a tail makes of a map, by definition."""
    for step in tail:
        y = step.meaning(y)
    return y


def with_tail(proto, tail):
    """A copy of a model with a tail behind its result, which keeps its name."""
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    graph = copied.graph
    (output,) = graph.output
    for node in graph.node:
        node.output[:] = ["map" if name == output.name else name for name in node.output]
    value = "map"
    for number, step in enumerate(tail):
        inputs = []
        for index, array in enumerate(step.stored):
            name = f"operand_{number}_{index}"
            inputs.append(value if array is None else name)
            if array is not None:
                graph.initializer.append(tensor(name, array))
        for place, operator in enumerate(step.operators):
            last = number == len(tail) - 1 and place == len(step.operators) - 1
            result = output.name if last else f"tail_{number}_{place}"
            graph.node.append(
                helper.make_node(
                    operator,
                    inputs,
                    [result],
                    name=f"{operator}_{number}",
                    **(step.attributes if place == 0 else {}),
                )
            )
            inputs = [value, result]
        value = graph.node[-1].output[0]
    return copied
