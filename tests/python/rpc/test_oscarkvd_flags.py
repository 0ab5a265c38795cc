"""oscarkvd's command line: what it prints, how flags and file go together, exit statuses."""

import pathlib
import subprocess

import pytest
import yaml

EXAMPLE = pathlib.Path(__file__).parents[3] / "deploy/config/oscarkvd.yaml"


@pytest.fixture
def oscarkvd(build_dir, tmp_path):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")

    def run(*arguments, config=None):
        if config is not None:
            (tmp_path / "c.yaml").write_text(config)
            arguments = (*arguments, "--config", tmp_path / "c.yaml")
        return subprocess.run([build_dir / "bin" / "oscarkvd", *arguments], capture_output=True, text=True, timeout=30)
    return run


def test_check_config_prints_what_would_run(oscarkvd):
    done = oscarkvd("--check-config")
    assert done.returncode == 0 and done.stderr == ""
    printed = yaml.safe_load(done.stdout)
    assert printed["listen"] == ["127.0.0.1:7411"] and printed["limits"]["max_items"] == 1024
    assert printed["log_format"] == "json"  # not on a terminal
    assert oscarkvd("--check-config", config=done.stdout).stdout == done.stdout


def test_the_example_is_the_defaults(oscarkvd):
    done = oscarkvd("--check-config", "--config", EXAMPLE)
    assert done.returncode == 0 and done.stdout == oscarkvd("--check-config").stdout


def test_flags_override_the_file(oscarkvd):
    config = "{listen: [a:1, b:2], metrics_listen: off, host: {capacity: 1GiB}, log_level: error, log_format: text}"
    done = oscarkvd("--check-config", config=config)
    assert yaml.safe_load(done.stdout)["listen"] == ["a:1", "b:2"]
    flags = ("--listen", "c:3", "--listen", "unix:/d", "--metrics-listen", "e:5", "--log-level", "debug",
             "--host-capacity", "2GiB", "--log-format", "json")
    done = oscarkvd("--check-config", *flags, config=config)
    printed = yaml.safe_load(done.stdout)
    assert printed["listen"] == ["c:3", "unix:/d"] and printed["host"] == {"capacity": "2GiB"}
    assert (printed["metrics_listen"], printed["log_level"], printed["log_format"]) == ("e:5", "debug", "json")
    assert printed["limits"]["max_inflight"] == "256MiB"


def test_a_gpu_tier_wants_a_build_with_cuda(oscarkvd, build_dir):
    done = oscarkvd("--check-config", "--gpu-capacity", "1GiB", "--gpu-device", "2", "--gpu-required")
    if "OSCARKV_CUDA:BOOL=ON" in (build_dir / "CMakeCache.txt").read_text():
        assert yaml.safe_load(done.stdout)["gpu"] == {"capacity": "1GiB", "device": 2, "required": True}
    else:
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == "oscarkvd: gpu.capacity: this build has no CUDA (configure with -DOSCARKV_CUDA=ON)\n"


@pytest.mark.parametrize("config, message", [
    ("gpu: {required: yes}\n", "gpu.required is true, and gpu.capacity is off"),
    ("gpu: {capacity: 1GB}\n", "gpu.capacity: '1GB' is not a size"),
    ("log_levle: info\n", "c.yaml:1:1: unknown key 'log_levle', did you mean 'log_level'?"),
    ("host:\n  capacity: 5parsecs\n", "host.capacity: '5parsecs' is not a size"),
    ("limits:\n  max_items: [1]\n", "c.yaml:2:14: 'max_items' must be one value")])
@pytest.mark.parametrize("check", [["--check-config"], []])
def test_a_wrong_file_ends_with_1_and_says_where(oscarkvd, config, message, check):
    done = oscarkvd(*check, config=config)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("oscarkvd: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_wrong_flag_is_refused(oscarkvd):
    done = oscarkvd("--host-capacity", "1KiB", "--check-config")
    assert done.returncode == 1 and "host.capacity must be 16MiB..64TiB, found 1KiB" in done.stderr
    assert oscarkvd("--no-such-flag").returncode != 0


def test_a_file_that_is_not_there(oscarkvd):
    done = oscarkvd("--config", "/nonexistent/c.yaml")
    assert done.returncode == 1 and "/nonexistent/c.yaml" in done.stderr


def test_help_and_version(oscarkvd):
    assert oscarkvd("--version").stdout.startswith("oscarkvd 0.")
    assert "--check-config" in oscarkvd("--help").stdout
