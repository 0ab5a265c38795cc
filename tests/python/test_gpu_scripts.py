"""The scripts behind `./run gpu-test` and `./run gpu-bench`, on programs that stand for those that need a GPU."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "gpu"

BENCH = {"device": "Card", "copy_tb_per_s": 3.0, "repeats": 61, "rows": [
    {"name": "encode/tokens:65536", "us": 200.0, "tb_per_s": 1.5, "of_copy": 0.5, "floor_us": 100.0, "operations": 0},
    {"name": "decode/tokens:65536", "us": 120.0, "tb_per_s": 2.5, "of_copy": 0.83, "floor_us": 100.0,
     "operations": 9e10},
    {"name": "attend/requests:1/length:81920", "us": 29.0, "tb_per_s": 1.6, "of_copy": 0.5, "floor_us": 15.7,
     "operations": 0},
    {"name": "attend/requests:1/length:81920/wide:5", "us": 31.0, "tb_per_s": 1.6, "of_copy": 0.5, "floor_us": 15.9,
     "operations": 0}], "transfers": [
    {"name": "fetch", "ms": 54.0, "gb_per_s": 50.4, "of_copy": 0.93, "first_layer_ms": 1.5}],
    "tier": [{"name": "promote/packed", "gb_per_s": 51.0, "of_copy": 0.94}]}
TORCH = {"device": "Card", "torch": "2.11", "matrix_tflop_per_s": 600.0, "rows": [
    {"name": "attend/requests:1/length:81920", "us": 145.0, "way": "SDPA flash"}]}


def _script(name, *arguments):
    return subprocess.run([sys.executable, SCRIPTS / name, *map(str, arguments)], capture_output=True, text=True,
                          timeout=60)


def _rows(text):
    """{first cell: the others} of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


@pytest.fixture
def programs(tmp_path):
    """A gpu_bench that writes BENCH, and a gpu_test that passes two tests a process, but in the shards named."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name, text):
        (folder / name).write_text(f"#!{sys.executable}\nimport json, os, sys\n{text}")
        (folder / name).chmod(0o755)

    write("gpu_bench", f"open(sys.argv[sys.argv.index('--json') + 1], 'w').write({json.dumps(BENCH)!r})\n"
                       "print('measuring')\n")

    def gpu_test(failing=()):
        write("gpu_test", f"""
print("of", os.environ["GTEST_TOTAL_SHARDS"])
print("[  PASSED  ] 2 tests.")
if int(os.environ["GTEST_SHARD_INDEX"]) in {list(failing)!r}:
    sys.exit("[  FAILED  ] it")
""")

    gpu_test()
    return folder, gpu_test


def test_table_says_what_is_met_and_what_pytorch_takes(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    (tmp_path / "torch.json").write_text(json.dumps(TORCH))
    (tmp_path / "more.json").write_text(json.dumps(TORCH | {"rows": [
        {"name": "decode/tokens:65536", "us": 1200.0, "way": "compiled"}]}))
    done = _script("tables.py", tmp_path / "bench.json", tmp_path / "torch.json", tmp_path / "more.json")
    assert done.returncode == 0, done.stderr
    rows = _rows(done.stdout)
    encode, decode = rows["encode, 65,536 tokens"], rows["decode, 65,536 tokens"]
    assert encode[4:6] == ["2.0 TB/s", "missed"] and decode[4:6] == ["2.2 TB/s", "met"]
    assert encode[3] == "100.0" and decode[3] == "150.0"  # bytes, and operations where they take longer
    assert decode[6:9] == ["1200.0", "10.0x", "compiled"] and encode[6:9] == ["", "", ""]
    assert rows["attend, B = 1, L = 81,920"][4:9] == ["29 us", "met", "145.0", "5.0x", "SDPA flash"]
    assert rows["promote/packed"] == ["51.0", "94 %"]
    assert rows["fetch"] == ["54.0", "50.4", "93 %", "1.50"]
    assert rows["attend, B = 1, L = 81,920, 5 of its pages WIDE"][4:7] == ["", "", "145.0"]


def test_figures_of_several_machines_make_no_table(tmp_path):
    for name, figures in (("bench", BENCH), ("torch", TORCH), ("other", TORCH | {"device": "Another"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(figures))
    done = _script("tables.py", tmp_path / "bench.json", tmp_path / "torch.json", tmp_path / "other.json")
    assert done.returncode and "several machines" in done.stderr and not done.stdout


def test_table_without_pytorch_has_empty_cells(programs, tmp_path):
    folder, _ = programs
    done = _script("bench.py", "--bin-dir", folder, "--no-torch", "--json", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    assert _rows(done.stdout)["decode, 65,536 tokens"][6:9] == ["", "", ""]
    assert json.loads((tmp_path / "all.json").read_text()) == {"bench": BENCH, "torch": None}


@pytest.mark.parametrize("script, arguments", [("bench.py", ["--no-torch"]), ("test.py", [])])
def test_missing_program_is_said(tmp_path, script, arguments):
    done = _script(script, "--bin-dir", tmp_path, *arguments)
    assert done.returncode and "is not there" in done.stderr and "Traceback" not in done.stderr


def test_shards_are_added_up(programs):
    folder, _ = programs
    done = _script("test.py", "--bin-dir", folder, "--shards", 3, "--every", 5)
    assert done.returncode == 0 and "6 tests passed (every 5th), no error" in done.stdout


def test_every_test_runs_in_some_shard(programs, tmp_path):
    folder, _ = programs
    _script("test.py", "--bin-dir", folder, "--shards", 3, "--every", 5, "--logs", tmp_path / "logs")
    assert [log.read_text().splitlines()[0] for log in sorted((tmp_path / "logs").iterdir())] == ["of 15"] * 3


def test_a_failing_shard_fails_and_shows_its_output(programs):
    folder, gpu_test = programs
    gpu_test(failing=[1])
    done = _script("test.py", "--bin-dir", folder, "--shards", 2)
    assert done.returncode == 1
    assert "1 of 2 processes FAILED" in done.stdout and "[  FAILED  ] it" in done.stdout


def test_no_test_of_that_name_fails(programs):
    folder, _ = programs
    (folder / "gpu_test").write_text("#!/bin/sh\necho '[  PASSED  ] 0 tests.'\n")
    done = _script("test.py", "--bin-dir", folder, "--shards", 2, "--filter", "Nothing.*")
    assert done.returncode == 1 and "no test is named like 'Nothing.*'" in done.stdout
