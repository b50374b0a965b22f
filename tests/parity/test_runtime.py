"""ONNX Runtime in a process of its own: the same results, and a limit or a crash is a sentence."""

import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deconvfix.errors import ExportError, RuntimeCrashError
from deconvfix.parity import runtime
from deconvfix.parity.runtime import isolated, open_session, run_named
from tests.support.onnx_files import net, run


def endless():
    """A loop of 2^62 turns behind a layer."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["cond_out"]),
            helper.make_node("Identity", ["value"], ["value_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, None),
        ],
    )
    model = net()
    model.graph.node.append(helper.make_node("Loop", ["turns", "", "y"], ["z"], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "turns"))
    model.graph.output[0].name = "z"
    return model


def huge(operator):
    """A model that asks for 2^50 numbers."""
    model = net()
    numbers = {"start": 0, "limit": 2**50, "delta": 1}
    if operator == "Range":
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(number), name) for name, number in numbers.items()
        )
        made = helper.make_node("Range", [*numbers], ["many"])
    else:
        shape = numpy_helper.from_array(np.array([2**50]), "shape")
        model.graph.initializer.append(shape)
        made = helper.make_node("ConstantOfShape", ["shape"], ["many"])
    kind = helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0)
    cast = helper.make_node("Cast", ["most"], ["number"], to=TensorProto.FLOAT)
    add = helper.make_node("Add", ["y", "number"], ["z"])
    model.graph.node.extend([made, kind, cast, add])
    model.graph.output[0].name = "z"
    return model


def test_results_are_the_same():
    content = net().SerializeToString()
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)}
    own = open_session(content)
    with isolated(60):
        other = open_session(content)
        assert np.array_equal(run_named(own, feed)[0], run_named(other, feed)[0])
    for declared in ("get_inputs", "get_outputs"):
        one, two = (
            [(v.name, v.shape, v.type) for v in getattr(s, declared)()] for s in (own, other)
        )
        assert one == two


def test_errors_are_those_of_onnx_runtime():
    with isolated(60):
        with pytest.raises(ExportError, match="it does not load the file"):
            open_session(b"nothing")
        session = open_session(net().SerializeToString())
        with pytest.raises(ExportError, match="it fails on inputs"):
            run_named(session, {"x": np.zeros((1, 9, 5, 4), np.float32)})
        feed = {"x": np.zeros((1, 3, 5, 4), np.float32)}
        assert len(run_named(session, feed)) == 1, "it goes on after an error"


def test_what_never_ends_is_ended():
    feed = {"x": np.zeros((1, 3, 5, 4), np.float32)}
    with isolated(60):
        session = open_session(endless().SerializeToString(), optimize=False)
        session.seconds = 1.0
        started = time.monotonic()
        with pytest.raises(RuntimeCrashError, match=r"did not finish within 1 s.*--timeout"):
            run_named(session, feed)
        assert time.monotonic() - started < 30
        with pytest.raises(RuntimeCrashError, match="has ended before"):
            run_named(session, feed)
        # The next file gets another process.
        assert len(run_named(open_session(net().SerializeToString()), feed)) == 1


def test_a_crash_is_a_sentence():
    feed = {"x": np.zeros((1, 3, 5, 4), np.float32)}
    with isolated(60):
        session = open_session(net().SerializeToString())
        os.kill(session.worker.process.pid, signal.SIGSEGV)
        session.worker.process.wait()
        with pytest.raises(RuntimeCrashError, match="ended"):
            run_named(session, feed)


def test_a_crash_in_the_middle_names_the_signal():
    with isolated(60):
        session = open_session(endless().SerializeToString(), optimize=False)
        code = f"import os, time; time.sleep(1); os.kill({session.worker.process.pid}, 11)"
        with (
            subprocess.Popen([sys.executable, "-c", code]),
            pytest.raises(RuntimeCrashError, match="ended by SIGSEGV"),
        ):
            run_named(session, {"x": np.zeros((1, 3, 5, 4), np.float32)})


def test_sessions_that_nobody_has_any_more_are_closed():
    with isolated(60):
        session = open_session(net().SerializeToString())
        worker, number = session.worker, session.number
        del session
        gc.collect()
        with pytest.raises(RuntimeError):
            worker.ask("run", number, {}, seconds=60)


def test_the_process_ends_with_the_one_that_asked():
    code = (
        "import os, signal\n"
        "from deconvfix.parity.runtime import isolated, open_session\n"
        "from tests.support.onnx_files import net\n"
        "with isolated(60):\n"
        "    session = open_session(net().SerializeToString())\n"
        "    print(session.worker.process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_timing_stays_in_this_process():
    with isolated(60):
        session = open_session(net().SerializeToString(), threads=1)
    assert not hasattr(session, "worker")


@pytest.mark.parametrize(
    ("make", "words"), [(endless, "did not finish within 2 s"), (lambda: huge("Range"), "")]
)
def test_command_ends(tmp_path, make, words):
    onnx.save(make(), tmp_path / "in.onnx")
    started = time.monotonic()
    command = ("convert", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--timeout", "2")
    result = run(*command, "--strict")
    assert time.monotonic() - started < 60
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_time_limit_must_be_a_time(tmp_path):
    onnx.save(net(), tmp_path / "in.onnx")
    assert run("inspect", tmp_path / "in.onnx", "--timeout", "0").exit_code == 2


def test_one_process_serves_all(tmp_path):
    """Starting one takes as long as many small runs."""
    with isolated(60):
        workers = {open_session(net().SerializeToString()).worker.process.pid for _ in range(3)}
    assert len(workers) == 1
    assert len(runtime._workers) == 1
