"""One layer cut out: the same values as in its model, in its own sizes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deconvfix.errors import ModelError
from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.plan import Options
from deconvfix.planning import make_plan
from deconvfix.runtimes.alone import feed_of, layer_alone, layer_shapes, save
from tests.support.onnx_files import net


def session(path):
    return onnxruntime.InferenceSession(str(path))


def test_a_layer_alone_gives_what_it_gives_in_its_model(tmp_path):
    """The first layer of the net reads relu(x), and the second what that gives."""
    proto = net(shape=(2, 3, 6, 5))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, None))
    onnx.save(proto, tmp_path / "net.onnx")
    model = ir.from_proto(proto)
    layers = find_layers(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    shapes, fixed = layer_shapes(model, layers, {"x": x})
    assert shapes == {"up1": (2, 3, 6, 5), "up2": (2, 5, 11, 14)}
    assert fixed == {"up1", "up2"}
    y, a = session(tmp_path / "net.onnx").run(None, {"x": x})
    plan = make_plan(FRONTEND.find(model, None).matches, Options())
    for layer, read, gives in zip(layers, (np.maximum(x, 0), a), (a, y), strict=True):
        single = layer_alone(model, layer, shapes[layer.name])
        assert single.feed["x"].shape == read.shape
        own = session(save(single.model, tmp_path / "own.onnx")).run(None, {"x": read})[0]
        np.testing.assert_array_equal(own, gives)
        converted = save(single.converted(plan[layer.name], None), tmp_path / "converted.onnx")
        assert "ConvTranspose" not in [node.op_type for node in onnx.load(converted).graph.node]
        np.testing.assert_allclose(
            session(converted).run(None, {"x": read})[0], gives, atol=1e-4 * np.abs(gives).max()
        )


def test_open_axes_stay_open_and_are_part_of_the_geometry():
    model = ir.from_proto(net(shape=(1, 3, "h", 5)))
    (layer, _) = find_layers(model)
    x = np.zeros((1, 3, 6, 5), np.float32)
    shapes, fixed = layer_shapes(model, [layer], {"x": x})
    single = layer_alone(model, layer, shapes["up1"], fixed_batch="up1" in fixed)
    first, *rest = list(single.model.graph.inputs[0].shape)
    assert (first, rest[0], rest[2]) == (1, 3, 5)
    assert not isinstance(rest[1], int)
    other = ir.from_proto(net(shape=(1, 3, 6, 5)))
    same_size = layer_alone(other, find_layers(other)[0], shapes["up1"])
    assert single.feed["x"].shape == same_size.feed["x"].shape
    assert single.geometry != same_size.geometry


def test_values_of_weights_are_no_part_of_the_geometry():
    models = [ir.from_proto(net(shape=(1, 3, 6, 5), seed=seed)) for seed in (0, 1)]
    one, other = (layer_alone(model, find_layers(model)[0], (1, 3, 6, 5)) for model in models)
    assert one.geometry == other.geometry
    assert layer_alone(models[0], find_layers(models[0])[0], (2, 3, 6, 5)).geometry != one.geometry


def test_a_weight_that_is_computed_is_an_input():
    proto = net(shape=(1, 3, 6, 5))
    weight = proto.graph.initializer[0]
    weight.name = "stored"
    proto.graph.input.append(onnx.helper.make_tensor_value_info("scale", 1, [1]))
    proto.graph.node.insert(
        0, onnx.helper.make_node("Mul", ["stored", "scale"], ["up1.weight"], name="scaled")
    )
    model = ir.from_proto(proto)
    single = layer_alone(model, find_layers(model)[0], (1, 3, 6, 5))
    assert {name: array.shape for name, array in single.feed.items()} == {
        "x": (1, 3, 6, 5),
        "weight": (3, 5, 4, 3),
    }


def with_tail(*, alpha=0.5, channels=True):
    """The net with two nodes behind its second layer, whose result is "y" still."""
    proto = net(shape=(1, 3, 6, 5))
    (last,) = [each for each in proto.graph.node if "y" in each.output]
    last.output[0] = "t"
    shape = (2, 1, 1) if channels else (1,)
    slopes = np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(np.float32) / 8
    proto.graph.initializer.append(onnx.numpy_helper.from_array(slopes, "slopes"))
    proto.graph.node.extend(
        [
            onnx.helper.make_node("LeakyRelu", ["t"], ["leaky"], alpha=alpha),
            onnx.helper.make_node("Mul", ["slopes", "leaky"], ["y"]),
        ]
    )
    return ir.from_proto(proto)


def alone_with_tail(**tail):
    model = with_tail(**tail)
    layer = find_layers(model)[1]
    return model, layer, layer_alone(model, layer, (1, 5, 11, 14))


def test_what_follows_element_by_element_comes_with_the_layer(tmp_path):
    """And moves before the shuffle in it, as in the whole model."""
    model, layer, single = alone_with_tail()
    plan = make_plan(FRONTEND.find(model, None).matches, Options())
    own = save(single.model, tmp_path / "own.onnx")
    converted = save(single.converted(plan[layer.name], None), tmp_path / "converted.onnx")
    kinds = [node.op_type for node in onnx.load(own).graph.node]
    assert kinds == ["ConvTranspose", "LeakyRelu", "Mul"]
    kinds = [node.op_type for node in onnx.load(converted).graph.node if node.op_type != "Constant"]
    assert kinds[:3] == ["Conv", "LeakyRelu", "Mul"]
    want, got = (session(path).run(None, single.feed)[0] for path in (own, converted))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_tail_is_part_of_the_geometry():
    geometries = [
        alone_with_tail(**tail)[-1].geometry for tail in ({}, {"alpha": 0.25}, {"channels": False})
    ]
    without = ir.from_proto(net(shape=(1, 3, 6, 5)))
    geometries.append(layer_alone(without, find_layers(without)[1], (1, 5, 11, 14)).geometry)
    assert len(set(geometries)) == 4
    assert alone_with_tail()[-1].geometry == geometries[0]


def test_inputs_are_made_up_where_no_size_is_open():
    assert feed_of(ir.from_proto(net(shape=(1, 3, "h", 5))), None) is None
    made = feed_of(ir.from_proto(net(shape=(1, 3, 6, 5))), None)
    assert made["x"].shape == (1, 3, 6, 5)


def test_a_model_that_does_not_run_is_told():
    model = ir.from_proto(net())
    with pytest.raises(ModelError, match="it runs once, so that the sizes of its layers are known"):
        layer_shapes(model, find_layers(model), {"x": np.zeros((1, 4, 6, 5), np.float32)})
