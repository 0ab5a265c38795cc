"""What all Python tests share: where the build is."""

import pathlib

import pytest


def pytest_addoption(parser):
    parser.addoption("--build-dir", default="build/dev", help="the build folder whose programs are run")


@pytest.fixture(scope="session")
def build_dir(request):
    path = pathlib.Path(request.config.getoption("--build-dir")).resolve()
    if not path.is_dir():
        pytest.skip(f"no build in {path}")
    return path
