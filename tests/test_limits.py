"""How long and how wide code may be, so that every file can be read from top to bottom."""

import ast
from collections import defaultdict

import pytest
from sources import SOURCES, tree

MAX_LINES = 60  # of a function, its docstring included
MAX_PARAMETERS = 6  # of a function, self not counted
NESTED_LINES = 4  # of the one statement that a nested function may have
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAY_SHARE_A_NAME = {"main"}  # each script has one


def decorated(function: ast.FunctionDef, name: str) -> bool:
    return any(name in ast.unparse(decorator) for decorator in function.decorator_list)


def too_long(source: str) -> list[str]:
    return [
        f"line {node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(source))
        if isinstance(node, FUNCTIONS) and node.end_lineno - node.lineno + 1 > MAX_LINES
    ]


def too_wide(source: str) -> list[str]:
    """Functions with too many parameters. Triton's kernels may have more, because they take a pointer per tensor; self
    and the context of an autograd function do not count."""
    found = []
    for node in ast.walk(tree(source)):
        if isinstance(node, FUNCTIONS) and not decorated(node, "triton.jit"):
            a = node.args
            parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            count = sum(parameter.arg not in ("self", "cls", "ctx") for parameter in parameters)
            if count > MAX_PARAMETERS:
                found.append(f"line {node.lineno}: {node.name} has {count} parameters")
    return found


def long_and_nested(source: str) -> list[str]:
    """Functions inside functions that are more than one short statement. Context managers are excepted."""
    found = []
    for outer in ast.walk(tree(source)):
        for node in ast.walk(outer) if isinstance(outer, FUNCTIONS) else ():
            if node is outer or not isinstance(node, FUNCTIONS) or decorated(node, "contextmanager"):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if len(body) > 1 or body[0].end_lineno - body[0].lineno >= NESTED_LINES:
                found.append(f"line {node.lineno}: {node.name} inside {outer.name}")
    return found


def names_used_twice(sources: dict[str, str]) -> list[str]:
    """Top-level functions and classes whose name is taken in another file as well."""
    files = defaultdict(set)
    for file, source in sources.items():
        for node in tree(source).body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name not in MAY_SHARE_A_NAME:
                files[node.name].add(file)
    return [f"{name}: {', '.join(sorted(found))}" for name, found in sorted(files.items()) if len(found) > 1]


@pytest.mark.parametrize("check", [too_long, too_wide, long_and_nested])
def test_functions_are_within_the_limits(check):
    found = [f"{file}, {where}" for file, source in SOURCES.items() for where in check(source)]
    assert not found, "\n".join(found)


def test_no_two_functions_or_classes_have_one_name():
    found = names_used_twice(SOURCES)
    assert not found, "\n".join(found)


# --- each check can fail ----------------------------------------------------------------------------------------------


def test_a_long_function_would_be_found():
    source = "class C:\n  def f(self):\n    'd'\n" + "    a = 1\n" * 58
    assert too_long(source) == []
    assert too_long(source + "    a = 1\n") == ["line 2: f has 61 lines"]


def test_a_wide_function_would_be_found():
    assert too_wide("class C:\n  def f(self, a, b, c, d, e, f): pass\n") == []
    assert too_wide("def f(a, b, c, /, d, *e, f, **g): pass\n") == ["line 1: f has 7 parameters"]
    assert too_wide("@triton.jit\ndef f(a, b, c, d, e, f, g): pass\n") == []


def test_a_long_nested_function_would_be_found():
    assert (
        long_and_nested("def f():\n  def g():\n    'd'\n    return 1\n  @contextmanager\n  def h():\n    a\n    b\n")
        == []
    )
    assert long_and_nested("def f():\n  class C:\n    def g(self):\n      a\n      b\n") == ["line 3: g inside f"]
    assert long_and_nested("def f():\n  def g():\n    for a in b:\n      c\n      d\n      e\n      f\n") == [
        "line 2: g inside f"
    ]
    assert long_and_nested("class C:\n  def f(self):\n    a\n    b\n") == []


def test_a_name_used_twice_would_be_found():
    assert names_used_twice(
        {"a.py": "def f(): g()\ndef main(): pass\n", "b.py": "class f: pass\ndef main(): pass\n"}
    ) == ["f: a.py, b.py"]
    assert names_used_twice({"a.py": "class C:\n  def f(self): pass\n", "b.py": "def f(): pass\n"}) == []
