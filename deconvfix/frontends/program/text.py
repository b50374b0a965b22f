"""The text inside a .pt2 file, read as data before torch may turn any of it into Python.

torch.export.load calls, evaluates and compiles strings of the file: it resolves operator names by
attribute, gives sizes to sympy.sympify (an `eval`), writes names into the source of `forward`, compiles
the guards when `module()` is called, and imports modules that tree specifications name. What is accepted
here is what torch.export itself writes for a program of tensor operators; the rest is refused.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["check_payloads", "check_program"]

# Operators that only compute. Others are code that somebody registered, or reach files and devices.
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.\w+\.\w+")
_REACHES_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save)\..*")
_HIGHER_ORDER = re.compile(
    r"torch\.ops\.higher_order\.(associative_scan|auto_functionalized|auto_functionalized_v2|cond"
    r"|flex_attention|invoke_subgraph|map_impl|out_dtype|scan|strict_mode|tag_activation_checkpoint"
    r"|while_loop|wrap|wrap_activation_checkpoint|wrap_with_autocast|wrap_with_set_grad_enabled)"
)
_PLAIN_FUNCTION = re.compile(
    r"_operator\.(add|and_|abs|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv)|math\.(ceil|floor|trunc)"
    r"|torch\.(sym_(float|int|ite|max|min|not|sqrt|sum)|_sym_sqrt)"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
    r"|torch\._functorch\.predispatch\.(_(add|remove)_batch_dim|_vmap_(in|de)crement_nesting"
    r"|lazy_load_decompositions)"
)
# Names that become Python source, and dotted names that are quoted in it.
_IDENTIFIER = re.compile(r"([^\W\d]\w*)?")
_DOTTED = re.compile(r"[\w.\-/: ]*")
_KEY = re.compile(r"[\w.\- ]*")
_NUMBER = re.compile(r"[-+]?[\d.]{1,400}(e[-+]?\d{1,3})?")
_SYMPY_CALL = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Mod|floor|ceiling|Eq|Ne|Ge|Gt|Le|Lt"
    r"|Equality|Unequality|(Strict)?(GreaterThan|LessThan)|And|Or|Not|Piecewise|ExprCondPair|Tuple"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift"
    r"|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator"
    r"|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
# With these a short text makes a number of any size.
_POWERS = frozenset({"Pow", "PowByNatural", "LShift"})
_LARGEST_EXPONENT = 64
# Of one expression: sympy takes minutes for a product of a thousand sizes.
_MOST_NODES = 1000
_GUARD_NAME = re.compile(
    r"L|math|torch|inf|max|min|abs|int|float|round|cast_symbool_to_symint_guardless"
)
_GUARD_ATTRIBUTE = re.compile(r"size|stride|storage_offset|trunc|floor|ceil|sqrt|sym_\w+")
_PLAIN_NODES = (
    ast.Expression,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
_TREES = frozenset(
    {
        "builtins.tuple",
        "builtins.list",
        "builtins.dict",
        "collections.namedtuple",
        "collections.OrderedDict",
        "collections.deque",
        "torch.fx.immutable_collections.immutable_list",
        "torch.fx.immutable_collections.immutable_dict",
        "torch.Size",
    }
)
# Above this many elements, a tensor without stored values (torch makes zeros) is refused.
_MOST_MADE_UP = 2**26


def check_program(program: Any) -> str | None:
    """What a program's JSON holds beyond tensor operators, in words; None if nothing.

    Args:
        program: The decoded `models/model.json`.
    """
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        return "it is not the description of a program"
    # Without a verifier torch would not check the graph at all.
    verifiers = program.get("verifiers")
    known = ("ATEN", "TRAINING")
    if not isinstance(verifiers, list) or not verifiers or any(v not in known for v in verifiers):
        return f"the program names the verifiers {verifiers!r}"
    return next(_problems(program), None)


def check_payloads(config: Any, prefix: str, sizes: dict[str, int]) -> str | None:
    """What a list of stored tensors holds beyond raw values, in words; None if nothing.

    Args:
        config: The decoded `model_weights_config.json` or `model_constants_config.json`.
        prefix: How the names of the members with values begin.
        sizes: Bytes of each such member.
    """
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        return "it is not a list of tensors"
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
            return f"{name!r} is not described"
        # A missing entry is refused too: torch's default may change.
        if entry.get("use_pickle") is not False:
            return f"{name!r} is stored as a pickle"
        member = entry["path_name"]
        if not re.fullmatch(prefix + r"\d+", member) or member not in sizes:
            return f"the values of {name!r} are in {member!r}, which is not a tensor of this file"
        if not _DOTTED.fullmatch(name) or not isinstance(entry.get("tensor_meta"), dict):
            return f"{name!r} is not described"
        problem = next(_problems(entry), None)
        if problem:
            return problem
        # An empty member stands for a tensor of zeros, whose size only the text says.
        if not sizes[member] and _elements(entry["tensor_meta"]) > _MOST_MADE_UP:
            return f"{name!r} has no values and a size of {_elements(entry['tensor_meta'])}"
    return None


def _elements(tensor_meta: dict[str, Any]) -> int:
    count = 1
    for size in tensor_meta.get("sizes") or ():
        count *= int(size.get("as_int", 1)) if isinstance(size, dict) else 1
    return count


# --- what may stand where -----------------------------------------------------------------------


def _is_text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: (
        value is None or (isinstance(value, str) and pattern.fullmatch(value) is not None)
    )


def _is_function(value: Any) -> bool:
    if not isinstance(value, str) or _REACHES_FILES.fullmatch(value):
        return False
    return any(pattern.fullmatch(value) for pattern in (_OPERATOR, _HIGHER_ORDER, _PLAIN_FUNCTION))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None)


def _is_float(value: Any) -> bool:
    return _is_number(value) or value in ("Infinity", "-Infinity", "NaN")


def _each(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, list) and all(map(accepts, value)))


def _parsed(text: Any) -> list[ast.AST] | None:
    # Names with two underscores lead from any object to the interpreter.
    if not isinstance(text, str) or len(text) > 10_000 or "__" in text:
        return None
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return nodes if len(nodes) <= _MOST_NODES else None


def _is_variable(text: Any) -> bool:
    """Whether a text is the name of a variable in the source of a method."""
    reserved = isinstance(text, str) and (keyword.iskeyword(text) or text == "self")
    return _is_text(_IDENTIFIER)(text) and not reserved


def _is_size(text: Any) -> bool:
    """Whether a text is an expression of sympy's constructors and symbols alone."""
    nodes = _parsed(text)
    return nodes is not None and all(map(_belongs_to_size, nodes))


def _belongs_to_size(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            # Only names are called, so no attribute of a module is reached.
            known = _SYMPY_CALL.fullmatch(name) is not None
            return known and (not _is_power(node) or _is_small(node))
        case ast.BinOp(op=ast.Pow() | ast.LShift()):
            return _is_small(node)
        case ast.Constant(value=str(text)):
            return bool(_IDENTIFIER.fullmatch(text) or _NUMBER.fullmatch(text))
        case ast.keyword() | ast.Name():
            return True
        case ast.Constant(value=int() | float()):
            return True
    return isinstance(node, _PLAIN_NODES)


def _is_power(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _POWERS
        case ast.BinOp(op=ast.Pow() | ast.LShift()):
            return True
    return False


def _is_small(power: ast.AST) -> bool:
    """sympy computes powers of numbers at once, however large: only small exponents, no towers."""
    exponents = [power.right] if isinstance(power, ast.BinOp) else getattr(power, "args", [])[1:]
    inside = [node for node in ast.walk(power) if node is not power]
    return not any(map(_is_power, inside)) and all(map(_is_exponent, exponents))


def _is_exponent(node: ast.AST) -> bool:
    """A small number as it stands, or a symbol: a product of small numbers is no small number."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return abs(number) <= _LARGEST_EXPONENT
        case ast.UnaryOp(operand=operand):
            return _is_exponent(operand)
        case ast.Name():
            return True
        case ast.Call(func=ast.Name(id="Symbol")):
            return True
        case ast.Call(func=ast.Name(id="Integer" | "Rational" | "Float"), args=args):
            return all(map(_is_exponent, args))
    return False


def _is_guard(text: Any) -> bool:
    """Whether a text compares sizes of inputs, as torch.export's own guards do."""
    nodes = _parsed(text)
    return nodes is not None and all(map(_belongs_to_guard, nodes))


def _belongs_to_guard(node: ast.AST) -> bool:
    match node:
        # The function's name is a node of its own, which the cases below look at.
        case ast.Call(func=ast.Name() | ast.Attribute(), keywords=[]) | ast.Subscript():
            return True
        case ast.Attribute(attr=attribute):
            return _GUARD_ATTRIBUTE.fullmatch(attribute) is not None
        case ast.Name(id=name):
            return _GUARD_NAME.fullmatch(name) is not None
        case ast.Constant(value=str(text)):
            return _KEY.fullmatch(text) is not None
        case ast.Constant(value=int() | float()):
            return True
        case ast.BinOp(op=ast.Pow() | ast.LShift()):
            return _is_small(node)
    return isinstance(node, _PLAIN_NODES)


def _is_tree(text: Any) -> bool:
    """Whether a text is the structure of plain containers, whose keys are plain words."""
    if text is None:
        return True
    try:
        # torch imports what a type names, so only plain containers are let through.
        protocol, specification = json.loads(text)
        return protocol == 1 and _is_branch(specification)
    except (TypeError, ValueError, KeyError, RecursionError):
        return False


def _is_branch(specification: dict[str, Any]) -> bool:
    kind, context = specification["type"], specification["context"]
    if kind is None:
        return context is None and specification["children_spec"] == []
    if kind not in _TREES:
        return False
    # The context of a dict is its keys, and of a named tuple its class's name.
    keys = json.loads(context) if isinstance(context, str) else context
    plain = [keys] if not isinstance(keys, list) else keys
    return all(isinstance(item, int | None) or _is_text(_KEY)(item) for item in plain) and all(
        map(_is_branch, specification["children_spec"])
    )


# By the names of torch's schema. A key that is not listed holds nothing that torch interprets.
_RULES: dict[str, Callable[[Any], bool]] = {
    "target": _is_function,
    "as_operator": _is_function,
    "expr_str": _is_size,
    "guards_code": _each(_is_guard),
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "forward_arg_names": _each(_is_variable),
    "name": _is_text(_IDENTIFIER),
    "as_name": _is_text(_IDENTIFIER),
    "parameter_name": _is_text(_DOTTED),
    "buffer_name": _is_text(_DOTTED),
    "tensor_constant_name": _is_text(_DOTTED),
    "custom_obj_name": lambda value: False,
    "user_input_name": _is_variable,
    "fqn": _is_text(_DOTTED),
    "as_int": _is_number,
    "as_ints": _each(_is_number),
    "as_float": _is_float,
    "as_floats": _each(_is_float),
    "as_bool": _is_number,
    "min_val": _is_number,
    "max_val": _is_number,
}


def _problems(value: Any) -> Iterator[str]:
    """Everything that breaks a rule; with a stack of its own, since the file chooses the depth."""
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, list):
            stack.extend(current)
        elif isinstance(current, dict):
            for key, value in current.items():
                accepts = _RULES.get(key)
                # An object under such a key is a value of that name in a mapping of torch's schema.
                if accepts is not None and not isinstance(value, dict) and not accepts(value):
                    yield f"{key} is {str(value)[:80]!r}"
                stack.append(value)
