"""Python's plain gRPC stubs of the contract, generated from the .proto files while the tests run."""

import importlib
import pathlib
import subprocess
import sys
import types

PROTO = pathlib.Path(__file__).parents[3] / "proto"
MODULES = ("types", "kv_cache", "admin", "server_config")


def generate(folder):
    """Generates the modules under `folder` and loads them."""
    files = [f"oscarkv/v1/{name}.proto" for name in MODULES]
    out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    # In a process of its own: protoc's library and the client's binding are built with two versions of protobuf's C++
    # code, whose symbols meet when both are loaded.
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *out, *files], check=True)
    return load(folder)


def load(folder):
    """All messages, enums, their values and both stubs by name, from modules that were generated under `folder`."""
    # The generated code says `from oscarkv.v1 import ...`, and `oscarkv` is also the client's package: a module of that
    # name that knows the way is enough for both to live in one process.
    package = types.ModuleType("oscarkv.v1")
    package.__path__ = [f"{folder}/oscarkv/v1"]
    sys.modules["oscarkv.v1"] = package
    found = types.SimpleNamespace()
    for name in MODULES:
        module = importlib.import_module(f"oscarkv.v1.{name}_pb2")
        for message in module.DESCRIPTOR.message_types_by_name:
            setattr(found, message, getattr(module, message))
        for name_of_enum, enum in module.DESCRIPTOR.enum_types_by_name.items():
            setattr(found, name_of_enum, getattr(module, name_of_enum))
            vars(found).update((value.name, value.number) for value in enum.values)
    found.KvCache = importlib.import_module("oscarkv.v1.kv_cache_pb2_grpc").KvCacheStub
    found.Admin = importlib.import_module("oscarkv.v1.admin_pb2_grpc").AdminStub
    return found
