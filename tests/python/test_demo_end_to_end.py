"""The whole demo on a tiny random model, through a real oscarkvd and workers in processes of their own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

import tiny_model

METHODS = ["bf16", "naive_int2", "hadamard_int2", "oscar_paper", "oscar_int2", "oscarkv", "oscarkv_k4"]
SIZES = {"calibration": 2048, "prompt": 288, "generate": 4, "prefix": 256, "tail": 64, "page": 32,
         "sinks": 32, "recent": 64}


def _run(build_dir, *arguments):
    sizes = [part for name, value in SIZES.items() for part in (f"--{name}-tokens", str(value))]
    return subprocess.run(
        [sys.executable, "-m", "oscarkv.demo", "--build-dir", str(build_dir), *sizes, "--windows", "2",
         *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(build_dir / "python")})


@pytest.fixture(scope="module")
def demo(build_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    path = tiny_model.write_gguf(folder / "tiny.gguf", tiny_model.random_weights())
    done = _run(build_dir, "--model", path, "--json", folder / "figures.json", "--plot",
                folder / "plot.png", "--keep", folder / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done, json.loads((folder / "figures.json").read_text())


def test_figures_have_every_name(demo):
    _, _, figures = demo
    for name in ("tokens_reused", "ttft_recompute_s", "ttft_fetch_s", "bytes_wire", "bytes_stored",
                 "bytes_bf16"):
        assert figures[name] > 0, name
    assert list(figures["quality"]) == METHODS
    for found in figures["quality"].values():
        assert set(found) == {"ppl", "top1", "kl_first64", "kl_rest"}


def test_prefix_is_reused_as_far_as_it_is_shared(demo):
    _, _, figures = demo
    assert figures["tokens_reused"] == SIZES["prompt"]
    push, b, c = figures["push"], figures["worker_b"], figures["worker_c"]
    assert push["pages"] >= SIZES["prompt"] // 32
    # The first page is all sinks; the recent window of A's prompt touches two or three pages.
    assert 3 <= push["wide_pages"] <= 4 and push["packed_pages"] == push["pages"] - push["wide_pages"]
    assert b["nothing"]["tokens_reused"] == 0
    half = c["take"]["tokens_reused"]
    assert 0 < half < SIZES["prompt"] // 2 + 1 and half % 32 == 0
    assert c["recompute"]["tokens_reused"] == half - SIZES["recent"]


def test_bytes_are_those_of_the_pages(demo):
    _, _, figures = demo
    push = figures["push"]
    stored = (push["wide_pages"] * figures["bytes_wide_page"]
              + push["packed_pages"] * figures["bytes_packed_page"])
    assert figures["bytes_stored"] == push["bytes_wire"] == stored
    token = tiny_model.LAYERS * tiny_model.KV_HEADS * 2 * tiny_model.DIM * 2
    assert figures["bytes_bf16"] == push["pages"] * 32 * token
    assert figures["bytes_packed_page"] <= figures["bytes_wide_page"] / 4


def test_quality_follows_the_bits(demo):
    _, _, figures = demo
    table = figures["quality"]
    assert table["bf16"]["kl_first64"] < 1e-3
    assert table["bf16"]["kl_first64"] < table["oscarkv_k4"]["kl_first64"]
    assert table["oscarkv"]["kl_first64"] < table["naive_int2"]["kl_first64"]


def test_output_tells_every_step(demo):
    folder, done, figures = demo
    for step in "abcdef":
        assert f"({step})" in done.stdout and step in figures["steps_s"]
    samples = dict(line.rsplit(" ", 1) for line in done.stdout.split("(f)")[1].splitlines()
                   if line.startswith("    oscarkv_"))
    looked = int(samples["    oscarkv_lookup_keys_total"])
    assert looked >= int(samples["    oscarkv_lookup_hits_total"]) > 0
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "kept" / "oscarkv.safetensors").exists()


def test_other_architecture_is_refused_by_name(build_dir, tmp_path):
    path = tiny_model.write_gguf(tmp_path / "x.gguf", tiny_model.random_weights(), "gemma")
    done = _run(build_dir, "--model", path)
    assert done.returncode == 1 and "gemma" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="there is PyTorch")
def test_missing_pytorch_is_said(build_dir):
    done = _run(build_dir, "--device", "cuda")
    assert done.returncode == 1 and "-m pip install torch" in done.stderr and "Traceback" not in done.stderr


def test_missing_server_is_said(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "x.gguf", tiny_model.random_weights())
    done = subprocess.run(
        [sys.executable, "-m", "oscarkv.demo", "--build-dir", str(tmp_path), "--model", str(path)],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "is not there" in done.stderr and "Traceback" not in done.stderr


def test_help_lists_the_options(build_dir):
    done = _run(build_dir, "--help")
    assert done.returncode == 0
    for option in ("--json", "--model", "--keep", "--plot", "--windows", "--device"):
        assert option in done.stdout
