"""What the JSON of a .pt2 file may hold: nothing in a file is run."""

import contextlib
import json
import pickle
import re
import sys

import pytest
import torch

from deconvfix.errors import DeconvfixError
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.program.text import check_program
from tests.support.program_files import (
    PROGRAM,
    WEIGHTS,
    Touch,
    edit,
    in_sample_inputs,
    members_of,
    saved,
    write_members,
)

CONSTANTS = "data/constants/model_constants_config.json"

# torch's own loader says so about the files that it runs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def call(marker):
    return f"__import__('pathlib').Path('{marker}').touch()"


def in_a_weight(members, marker):
    members["data/weights/weight_0"] = saved(Touch(marker))
    edit(members, WEIGHTS, lambda data: data["config"]["up.weight"].update(use_pickle=True))


def in_a_constant(members, marker):
    members["data/constants/tensor_0"] = saved(Touch(marker))
    edit(members, CONSTANTS, lambda data: data["config"]["constant"].update(use_pickle=True))


def in_an_opaque_constant(members, marker):
    members["data/constants/opaque_obj_0"] = pickle.dumps(Touch(marker))
    edit(
        members,
        CONSTANTS,
        lambda data: data["config"]["constant"].update(path_name="opaque_obj_0", use_pickle=True),
    )


def in_legacy_weights(members, marker):
    members["data/weights/model.pt"] = saved(Touch(marker))


def in_legacy_constants(members, marker):
    members["data/constants/model.pt"] = saved(Touch(marker))


def in_a_second_program(members, marker):
    for name in (PROGRAM, WEIGHTS, CONSTANTS):
        members[name.replace("model", "other").replace("others", "models")] = members[name]
    members["data/sample_inputs/other.pt"] = saved(((Touch(marker),), {}))


def in_a_size(members, marker):
    text = members[PROGRAM].decode()
    assert "Symbol(" in text
    changed = re.sub(r'"expr_str": "[^"]*"', f'"expr_str": "{call(marker)}"', text, count=1)
    members[PROGRAM] = changed.encode()


def in_a_guard(members, marker):
    edit(members, PROGRAM, lambda data: data.update(guards_code=[call(marker)]))


def in_a_guards_text(members, marker):
    """The text of a guard is quoted in the message that it fails with."""
    guard = f"L['x'].size()[0] != \" + str({call(marker)}) + \""
    edit(members, PROGRAM, lambda data: data.update(guards_code=[guard]))


def in_a_node_name(members, marker):
    text = members[PROGRAM].decode()
    members[PROGRAM] = text.replace('"x"', json.dumps(f"x={call(marker)}")).encode()


def in_an_operator(members, marker):
    """aten.from_file makes the file that it maps."""

    def change(data):
        graph = data["graph_module"]["graph"]
        arguments = {
            "filename": {"as_string": str(marker)},
            "shared": {"as_bool": True},
            "size": {"as_int": 4},
        }
        like = next(each for each in graph["tensor_values"] if each.startswith("b_count"))
        graph["tensor_values"]["mapped"] = graph["tensor_values"][like]
        graph["nodes"].insert(
            0,
            {
                "target": "torch.ops.aten.from_file.default",
                "inputs": [
                    {"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()
                ],
                "outputs": [{"as_tensor": {"name": "mapped"}}],
                "metadata": {},
                "is_hop_single_tensor_return": None,
                "name": "mapped",
            },
        )

    edit(members, PROGRAM, change)


def in_a_module_of_a_tree(members, marker):
    (marker.parent / "touching.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfactory = list\n"
    )
    context = {"default_factory_module": "touching", "default_factory_name": "factory"}
    tree = {
        "type": "collections.defaultdict",
        "context": {**context, "dict_context": []},
        "children_spec": [],
    }

    def change(data):
        data["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(
            [1, tree]
        )

    edit(members, PROGRAM, change)


ROUTES = [
    in_sample_inputs,
    in_a_weight,
    in_a_constant,
    in_an_opaque_constant,
    in_legacy_weights,
    in_legacy_constants,
    in_a_second_program,
    in_a_size,
    in_a_guard,
    in_a_guards_text,
    in_a_node_name,
    in_an_operator,
    in_a_module_of_a_tree,
]


@pytest.fixture(params=ROUTES, ids=lambda route: route.__name__)
def hostile(request, path, tmp_path, monkeypatch):
    """A file that creates the marker when torch reads it or runs its program."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "touching", raising=False)
    marker = tmp_path / "marker"
    members = members_of(path)
    request.param(members, marker)
    hostile = tmp_path / "hostile.pt2"
    write_members(hostile, members)
    return hostile, marker


def test_nothing_in_a_file_is_run(hostile):
    path, marker = hostile
    with pytest.raises(DeconvfixError, match="--trust"):
        program_file.read(path)
    assert not marker.exists()


def test_torch_itself_runs_it(hostile):
    """The control: the files of the test before are not harmless."""
    path, marker = hostile
    with contextlib.suppress(Exception):  # in most cases reading goes wrong, afterwards
        torch.export.load(path).module()(torch.randn(2, 2, 6))
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/code.so",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/executorch/model.pte",
        "constants.pkl",
    ],
)
def test_members_that_are_no_values_are_refused(path, name):
    members = members_of(path)
    members[name] = b"anything"
    write_members(path, members)
    with pytest.raises(DeconvfixError, match=f"{name}: it is neither a program nor raw values"):
        program_file.read(path)


@pytest.mark.parametrize("target", ["torch.ops.aten.from_file.default", "torch.hub.load",
                                    "torch.ops.load_library", "_operator.methodcaller",
                                    "torch.ops.higher_order.call_torchbind", "#ns:op"])  # fmt: skip
def test_functions_beyond_tensor_operators_are_refused(path, target):
    program = json.loads(members_of(path)[PROGRAM])
    assert check_program(program) is None
    program["graph_module"]["graph"]["nodes"][0]["target"] = target
    assert check_program(program) == f"target is {target!r}"


def test_names_of_arguments_are_identifiers(path):
    """They become the source of `forward`."""
    program = json.loads(members_of(path)[PROGRAM])
    program["anything"] = {"forward_arg_names": ["x", "mask_2"]}
    assert check_program(program) is None
    for name in ("y=print()", "self", "lambda"):
        program["anything"] = {"forward_arg_names": ["x", name]}
        assert check_program(program).startswith("forward_arg_names is")


@pytest.mark.parametrize(
    "size",
    [
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "9**9**9",
        "LShift(Integer(1), Integer(10000000000))",
        "Pow(9, 64*64*64*64*64)",
        "Pow(Integer(9), Mul(Integer(64), Integer(64), Integer(64)))",
        "Pow(Integer(9), Add(Integer(60), Integer(60)))",
        "Float('1e999999999')",
        "*".join(["Symbol('s0')"] * 1000),
        "Symbol('s0').subs",
        "Add('exit()')",
        "lambdify(Symbol('s0'))",
        "(" * 5000,
    ],
)
def test_sizes_that_compute_more_than_a_size_are_refused(path, size):
    program = json.loads(members_of(path)[PROGRAM])
    program["anything"] = {"expr_str": "Pow(Symbol('s7', integer=True), Integer(2))"}
    assert check_program(program) is None
    program["anything"] = {"expr_str": size}
    assert check_program(program).startswith("expr_str is")
