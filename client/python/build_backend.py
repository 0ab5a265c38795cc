"""Builds wheels (PEP 517): CMake makes the extension module, everything else is a zip file with a list of its contents.

The version is CMake's. The build tree lies in build/wheel-<python> of the checkout and is used again, so that the second
wheel takes seconds; OSCARKV_WHEEL_BUILD names another folder.
"""

import base64
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
TIMESTAMP = (2020, 1, 1, 0, 0, 0)  # the same sources give the same wheel


def _project():
    with open(HERE / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    cmake = (ROOT / "CMakeLists.txt").read_text()
    project["version"] = re.search(r"^project\(oscarkv VERSION (\S+)", cmake, re.M)[1]
    return project


def _metadata(project):
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}",
             f"Summary: {project['description']}", f"License-Expression: {project['license']}",
             "License-File: LICENSE", f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return "\n".join(lines) + "\n"


def _wheel_tag():
    return f"{PYTHON_TAG}-{PYTHON_TAG}-{re.sub('[.-]', '_', sysconfig.get_platform())}"


def _dist_info(project):
    """The wheel's folder about itself, and the files in it that do not depend on the rest: {path in the wheel: text}."""
    folder = f"{project['name']}-{project['version']}.dist-info"
    wheel = f"Wheel-Version: 1.0\nGenerator: oscarkv\nRoot-Is-Purelib: false\nTag: {_wheel_tag()}\n"
    return folder, {f"{folder}/METADATA": _metadata(project), f"{folder}/WHEEL": wheel}


def _cmake(*command):
    subprocess.run(["cmake", *map(str, command)], cwd=ROOT, check=True)


def build_module():
    """Builds the extension module and returns its build tree."""
    import pybind11  # needed for building only, not for metadata

    build = pathlib.Path(os.environ.get("OSCARKV_WHEEL_BUILD", ROOT / "build" / f"wheel-{PYTHON_TAG}"))
    _cmake("--preset", "release", "-B", build, "-DOSCARKV_BENCHMARKS=OFF", f"-DPython3_EXECUTABLE={sys.executable}",
           f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    _cmake("--build", build, "--target", "oscarkv_python")
    return build


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder, texts = _dist_info(_project())
    (pathlib.Path(metadata_directory) / folder).mkdir()
    for path, text in texts.items():
        (pathlib.Path(metadata_directory) / path).write_text(text)
    return folder


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    project = _project()
    dist_info, texts = _dist_info(project)
    with tempfile.TemporaryDirectory() as folder:
        _cmake("--install", build_module(), "--component", "python", "--prefix", folder, "--strip")
        contents = {path.relative_to(folder).as_posix(): path.read_bytes()
                    for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}
    contents |= {path: text.encode() for path, text in texts.items()}
    contents[f"{dist_info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    record = [f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
              for path, data in contents.items()]
    contents[f"{dist_info}/RECORD"] = "\n".join([*record, f"{dist_info}/RECORD,,", ""]).encode()
    name = f"{project['name']}-{project['version']}-{_wheel_tag()}.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path, TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if path.endswith(".so") else 0o644) << 16
            wheel.writestr(entry, data)
    return name


def build_sdist(sdist_directory, config_settings=None):
    raise RuntimeError("oscarkv is built from a checkout: pip install ./client/python, or pip wheel ./client/python")
