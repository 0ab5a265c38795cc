"""The type stubs say what the extension module has: the same names, the same arguments, the same defaults."""

import ast
import importlib
import importlib.resources
import inspect
import re

import pytest

import oscarkv
from oscarkv import _native


_OUR_DUNDERS = ("__init__", "__enter__", "__exit__")


def stub_of(name):
    return ast.parse(importlib.resources.files(oscarkv).joinpath(f"{name}.pyi").read_text())


def arguments_of(node):
    """{name: default} of a function's arguments; a name without one maps to nothing."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without = [inspect.Parameter.empty] * (len(positional) - len(arguments.defaults))
    found = dict(zip([argument.arg for argument in positional], without + [ast.literal_eval(default) for default in
                                                                             arguments.defaults]))
    found |= {argument.arg: ast.literal_eval(default) if default else inspect.Parameter.empty
              for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults)}
    if arguments.vararg:
        found["*"] = arguments.vararg.arg
    return found


def stub_members(body):
    """{name: arguments} of functions, {name: "property"} of properties; what begins with an underscore is the stub's own."""
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef) and not (node.name.startswith("_") and node.name not in _OUR_DUNDERS):
            is_property = any(getattr(decorator, "id", "") == "property" for decorator in node.decorator_list)
            found[node.name] = "property" if is_property else arguments_of(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = stub_members(node.body)
    return found


def module_members(holder):
    """The same of the module, from what pybind11 writes into the docstrings."""
    found = {}
    for name, value in vars(holder).items():
        if name.startswith("_") and name not in _OUR_DUNDERS:
            continue
        if isinstance(value, type):
            found[name] = module_members(value)
        elif isinstance(value, property):
            found[name] = "property"
        else:
            # Arguments and defaults only: the types are written otherwise.
            signature = re.match(r"\w+(\(.*\)) ->", getattr(holder, name).__doc__)
            if signature:  # a class that Python does not make has object's __init__
                found[name] = arguments_of(ast.parse(f"def {name}{signature[1]}: ...").body[0])
    return found


@pytest.mark.parametrize("name", ["_native", "_gpu"])
def test_stubs_and_module_agree(name):
    if name == "_gpu":
        pytest.importorskip("oscarkv._gpu", reason="built without CUDA")
    stub = stub_members(stub_of(name).body)
    module = module_members(importlib.import_module(f"oscarkv.{name}"))
    assert stub.keys() == module.keys()
    for name in module:
        assert stub[name] == module[name], name


def test_the_package_exports_all_of_it():
    assert sorted(oscarkv.__all__) == sorted([*module_members(_native), "__version__"])
    assert all(getattr(oscarkv, name) is getattr(_native, name) for name in oscarkv.__all__)


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files(oscarkv).joinpath("py.typed").is_file()
