"""The wheel: what pip makes of client/python, but for the compiler's part, which every build has done already."""

import importlib.util
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ROOT / "client" / "python" / "oscarkv"


@pytest.fixture
def backend(build_dir, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "client" / "python" / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "build_module", lambda: build_dir)
    return module


@pytest.fixture
def wheel(backend, tmp_path):
    return tmp_path / backend.build_wheel(tmp_path)


def test_build_tree_holds_the_whole_package(build_dir):
    there = {path.name for path in (build_dir / "python" / "oscarkv").iterdir() if path.suffix != ".so"}
    assert there - {"__pycache__"} == {path.name for path in SOURCES.iterdir()} - {"__pycache__"}


def test_wheel_holds_the_whole_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(SOURCES.parent).as_posix() for path in SOURCES.rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    assert sources < names
    modules = {name for name in names if name.endswith(".so")}
    built = {name.split(".")[0] for name in modules}
    assert "oscarkv/_native" in built and built <= {"oscarkv/_native", "oscarkv/_gpu"}  # the latter with CUDA only
    rest = names - sources - modules
    assert {name.split("/", 1)[1] for name in rest} == {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}


def test_installed_wheel_works_on_its_own(wheel, tmp_path):
    def run(*command):
        return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, cwd=tmp_path,
                              env={"PYTHONPATH": str(tmp_path / "site")}).stdout

    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", "site", str(wheel))
    code = "import oscarkv; print(oscarkv.__file__, oscarkv.__version__, len(oscarkv.chain_keys([1, 2], 1)))"
    file, version, keys = run("-c", code).split()
    assert pathlib.Path(file) == tmp_path / "site" / "oscarkv" / "__init__.py" and keys == "2"
    assert version == wheel.name.split("-")[1]
    assert "Version: " + version in run("-m", "pip", "show", "oscarkv")
    assert (tmp_path / "site" / "oscarkv" / "py.typed").is_file()


def test_wheel_is_the_same_each_time(backend, wheel, tmp_path):
    (tmp_path / "again").mkdir()
    again = backend.build_wheel(tmp_path / "again")
    assert again == wheel.name and (tmp_path / "again" / again).read_bytes() == wheel.read_bytes()


def test_metadata_before_the_build_is_that_of_the_wheel(backend, wheel, tmp_path):
    folder = backend.prepare_metadata_for_build_wheel(tmp_path)
    for name in ("METADATA", "WHEEL"):
        assert (tmp_path / folder / name).read_bytes() == zipfile.ZipFile(wheel).read(f"{folder}/{name}")


def test_source_distributions_are_refused_with_what_to_do(backend, tmp_path):
    with pytest.raises(RuntimeError, match="pip install ./client/python"):
        backend.build_sdist(tmp_path)
