"""A server for each test module, and a namespace for each test that must leave the server as it found it."""

import contextlib
import time

import grpc
import pytest

from . import stubs, transforms
from .pages import Shape
from .process import START_S, Oscarkvd
from .store import Space, held


@pytest.fixture(scope="session")
def stubs_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stubs")


@pytest.fixture(scope="session")
def v1(stubs_folder):
    return stubs.generate(stubs_folder)


@pytest.fixture(scope="module")
def server(build_dir, request):
    """The module's server; SERVER in the module holds arguments for it."""
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    with Oscarkvd(build_dir, **getattr(request.module, "SERVER", {})) as running:
        yield running
        running.terminate()
        assert running.wait() == 0, open(running.log).read()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.endpoint) as channel:
        yield channel


@pytest.fixture
def eventually():
    """Waits until what the server does after it has answered is done, by asking it again."""
    def wait(question, expected):
        deadline = time.monotonic() + START_S
        while (answer := question()) != expected and time.monotonic() < deadline:
            pass
        assert answer == expected
    return wait


@pytest.fixture
def open_space(v1, channel, request, eventually):
    """Opens namespaces, by default one of the test's own. Once they are cleared after the test, nothing is left."""
    before, opened = [], []

    def open_one(model=request.node.name, **arguments):
        opened.append(Space(v1, channel, model, **arguments))
        before.append(held(opened[0].stats()))
        return opened[-1]
    yield open_one
    for space in opened:
        eventually(lambda: space.clear().kept, 0)
    eventually(lambda: held(opened[0].stats()), before[0])


@pytest.fixture
def space(open_space):
    """A namespace of WIDE pages."""
    return open_space()


@pytest.fixture
def packing(open_space):
    """A namespace that holds PACKED pages too, under the identity transform."""
    file = transforms.identity(Shape())
    space = open_space(transform_hash=transforms.hash_of(file))
    space.upload(file, transforms.hash_of(file))
    return space


@pytest.fixture
def start(build_dir, tmp_path, v1):
    """Starts a server on the test's disk folder, for as long as the block runs; then it is killed."""
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")

    @contextlib.contextmanager
    def run(capacity="32MiB", admit="all"):
        config = f"disk: {{path: {tmp_path}/tier, capacity: {capacity}, segment: 1MiB, admit: {admit}}}"
        with Oscarkvd(build_dir, config=config) as server, grpc.insecure_channel(server.endpoint) as channel:
            yield server, v1.KvCache(channel), v1.Admin(channel), channel
    return run
