"""What all Python tests share: where the build is, and a server."""

import pathlib

import pytest
from support.server_process import ServerProcess


def pytest_addoption(parser):
    parser.addoption("--build-dir", default="build/dev", help="the build folder whose programs are run")


_SUMMARIES = pytest.StashKey()


@pytest.fixture(scope="session")
def summaries(request):
    """Lines for the end of the run's output."""
    return request.config.stash.setdefault(_SUMMARIES, [])


def pytest_terminal_summary(terminalreporter):
    for line in terminalreporter.config.stash.get(_SUMMARIES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def build_dir(request):
    path = pathlib.Path(request.config.getoption("--build-dir")).resolve()
    if not path.is_dir():
        pytest.skip(f"no build in {path}")
    return path


@pytest.fixture(params=["127.0.0.1:0", "unix"])
def server(request, build_dir):
    """An empty oscarkvd of this test's own, once on TCP and once on a Unix socket."""
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    process = ServerProcess(build_dir, request.param)
    yield process
    process.close()
