"""A .pt2 file is data: what torch saves is loaded, and what torch would run is refused."""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.errors import DeconvfixError
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.program.text import check_program

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"

# torch's own loader says so about the files that it runs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Net(nn.Module):
    """A dynamic axis with a guard, a parameter, a buffer and a constant."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 4, 2, 1)
        self.register_buffer("count", torch.zeros(1))
        self.constant = torch.ones(3, 1)

    def forward(self, x):
        self.count.add_(1)
        y = self.up(x) + self.constant
        return y if x.shape[2] % 2 == 0 else y[..., 1:]


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    dynamic = {"x": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
    return torch.export.export(Net().eval(), (torch.randn(2, 2, 6),), dynamic_shapes=dynamic)


@pytest.fixture
def path(program, tmp_path):
    path = tmp_path / "net.pt2"
    program_file.write(program, path)
    return path


class Touch:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {each.split("/", 1)[1]: archive.read(each) for each in archive.namelist()}


def write_members(path, members, root="net/", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)


def edit(members, name, change):
    data = json.loads(members[name])
    change(data)
    members[name] = json.dumps(data).encode()


def call(marker):
    return f"__import__('pathlib').Path('{marker}').touch()"


# --- files that torch writes --------------------------------------------------------------------


def test_a_saved_program_is_loaded(program, path):
    loaded = program_file.read(path)
    x = torch.randn(3, 2, 8)
    assert torch.equal(loaded.module()(x), program.module()(x))
    assert loaded.graph_signature == program.graph_signature
    assert str(loaded.range_constraints) == str(program.range_constraints)
    assert loaded._guards_code == program._guards_code != []
    (mine,), (theirs,) = loaded.example_inputs[0], program.example_inputs[0]
    assert torch.equal(mine, theirs)


def test_a_program_that_was_read_is_written_again(program, path, tmp_path):
    program_file.write(program_file.read(path), tmp_path / "again.pt2")
    again = program_file.read(tmp_path / "again.pt2")
    x = torch.randn(3, 2, 8)
    assert torch.equal(again.module()(x), program.module()(x))


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("to", ["subpixel", "resize", "equalized"])
def test_a_converted_program_needs_no_deconvfix(program, tmp_path, to, decomposed):
    source = program.run_decompositions() if decomposed else program
    converted = deconvfix.convert(source, to=to, padding_mode="replicate").model
    program_file.write(converted, tmp_path / "net.pt2")
    x = torch.randn(3, 2, 8)
    torch.save((x, converted.module()(x)), tmp_path / "expected.pt")
    code = (
        f"import sys, torch\ntorch.set_num_threads({torch.get_num_threads()})\n"
        "sys.modules['deconvfix'] = None\n"
        f"x, want = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"got = torch.export.load({str(tmp_path / 'net.pt2')!r}).module()(x)\n"
        "assert torch.equal(got, want)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# --- files that run something -------------------------------------------------------------------


def in_sample_inputs(members, marker):
    members[SAMPLE_INPUTS] = saved(((Touch(marker),), {}))


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


def test_a_trusted_file_is_loaded_as_torch_does(path, tmp_path):
    members = members_of(path)
    in_sample_inputs(members, tmp_path / "marker")
    write_members(tmp_path / "own.pt2", members)
    program_file.read(tmp_path / "own.pt2", trust=True)
    assert (tmp_path / "marker").exists()


def older_layout(path, marker):
    members = members_of(path)
    older = {
        "version": "8.20",
        "serialized_exported_program.json": members[PROGRAM],
        "serialized_state_dict.pt": saved(Touch(marker)),
        "serialized_constants.pt": saved({}),
        "serialized_example_inputs.pt": saved(((), {})),
    }
    write_members(path, older, root="")


def test_the_older_layout_is_refused(path, tmp_path):
    older_layout(path, tmp_path / "marker")
    with pytest.raises(DeconvfixError, match=r"older than torch 2\.8.*--trust"):
        program_file.read(path)
    assert not (tmp_path / "marker").exists()


def test_torch_runs_the_older_layout(path, tmp_path):
    older_layout(path, tmp_path / "marker")
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert (tmp_path / "marker").exists()


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
    program["anything"] = {"forward_arg_names": ["x", "y=print()"]}
    assert check_program(program).startswith("forward_arg_names is")


@pytest.mark.parametrize(
    "size",
    [
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "9**9**9",
        "LShift(Integer(1), Integer(10000000000))",
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


# --- damaged files ------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def without_program(path):
    members = members_of(path)
    del members[PROGRAM]
    write_members(path, members)


def not_json(path):
    write_members(path, {**members_of(path), PROGRAM: b"{"})


def deep_json(path):
    write_members(path, {**members_of(path), PROGRAM: b"[" * 100_000})


def another_object(path):
    write_members(path, {**members_of(path), PROGRAM: b"[1, 2]"})


def empty_graph(path):
    members = members_of(path)
    edit(members, PROGRAM, lambda data: data["graph_module"].update(graph={}))
    write_members(path, members)


def compressed(path):
    write_members(path, members_of(path), compression=zipfile.ZIP_DEFLATED)


def leading_outside(path):
    write_members(path, {**members_of(path), "../../evil": b""})


def twice(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")


def made_up_values(path):
    members = members_of(path)
    members["data/weights/weight_0"] = b""
    edit(
        members,
        WEIGHTS,
        lambda data: data["config"]["up.weight"]["tensor_meta"].update(sizes=[{"as_int": 10**12}]),
    )
    write_members(path, members)


def missing_values(path):
    members = members_of(path)
    del members["data/weights/weight_0"]
    write_members(path, members)


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "not a zip file", id="empty"),
        pytest.param(truncated, r"an archive of torch\.export\.save", id="truncated"),
        pytest.param(lambda path: path.write_text("{}"), "not a zip file", id="no archive"),
        pytest.param(Path.unlink, "there is no such file", id="missing"),
        pytest.param(as_folder, "there is no such file", id="folder"),
        pytest.param(as_fifo, "there is no such file", id="fifo"),
        pytest.param(without_program, r"it has no models/model\.json", id="no program"),
        pytest.param(not_json, "cannot be read as JSON", id="no JSON"),
        pytest.param(deep_json, "cannot be read as JSON", id="deep JSON"),
        pytest.param(another_object, "not the description of a program", id="other JSON"),
        pytest.param(empty_graph, r"torch\.export\.load fails", id="no graph"),
        pytest.param(compressed, "it is compressed", id="compressed"),
        pytest.param(leading_outside, "outside the archive's folder", id="outside"),
        pytest.param(twice, "it occurs twice", id="twice"),
        pytest.param(made_up_values, "has no values and a size of 1000000000000", id="made up"),
        pytest.param(missing_values, "which is not a tensor of this file", id="missing values"),
    ],
)
def test_a_damaged_file_is_a_sentence(path, damage, found):
    program_file.read(path)
    damage(path)
    with pytest.raises(DeconvfixError, match=found):
        program_file.read(path)


def test_a_program_that_torch_cannot_save(tmp_path):
    with pytest.raises(DeconvfixError, match=r"torch\.export\.save fails"):
        program_file.write(nn.Linear(1, 1), tmp_path / "net.pt2")
