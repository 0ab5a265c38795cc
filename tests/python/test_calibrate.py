"""`oscarkv calibrate` on small made-up dumps, and `oscarkv transform show` on what it wrote."""

import hashlib
import json
import os
import re
import resource
import sys

import numpy as np
import pytest
import synthetic_dump
import tensor_files
from synthetic_dump import DIM, KV_HEADS, Q_HEADS
from support.terminal import open_terminal

METHODS = ["naive", "hadamard", "hadamard+offset", "oscar", "oscar+offset", "oscar-head", "oscar-head+offset",
           "balanced", "balanced+offset"]


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return synthetic_dump.write(tmp_path_factory.mktemp("dump") / "all")


@pytest.fixture
def calibrate(build_dir, tmp_path):
    """calibrate(dump, ...) -> (finished process, path of the set)."""
    def call(source, *arguments, **options):
        out = tmp_path / "set.safetensors"
        sources = source if isinstance(source, list) else [source]
        return tensor_files.run(build_dir, "calibrate", *sources, "-o", out, "--recent-tokens", 64, *arguments,
                                **options), out
    return call


@pytest.fixture
def report(calibrate):
    def call(source, *arguments):
        done, out = calibrate(source, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), out
    return call


@pytest.fixture(scope="module")
def best(build_dir, dump, tmp_path_factory):
    """The set that the defaults give, and what was printed."""
    out = tmp_path_factory.mktemp("best") / "best.safetensors"
    done = tensor_files.run(build_dir, "calibrate", dump, "-o", out, "--recent-tokens", 64, "--model", "made-up \u2603")
    assert done.returncode == 0, done.stderr
    return out, done


# What comes out.

def test_file_holds_transforms_that_invert(best):
    tensors, metadata = tensor_files.read(best[0])
    assert metadata["format"] == "oscarkv-transform-1" and metadata["kv_heads"] == str(KV_HEADS)
    for side in "kv":
        forward, inverse = (tensors[f"{side}.{which}"].astype(np.float64) for which in ("forward", "inverse"))
        assert forward.shape[0] == 2 and forward.shape[1] in (1, KV_HEADS) and forward.shape[2:] == (DIM, DIM)
        assert np.abs(forward @ inverse - np.eye(DIM)).max() < 1e-4
        assert tensors[f"{side}.offset"].shape == forward.shape[:3]
        assert np.all((tensors[f"{side}.clip_ratio"] >= 0) & (tensors[f"{side}.clip_ratio"] < 1))


def test_report_sets_every_method_beside_naive(best):
    report = json.loads(tensor_files.read(best[0])[1]["report"])
    assert report["model"] == "made-up \u2603" and report["k_bits"] == 2 and len(report["layers"]) == 2
    for layer in report["layers"]:
        for side in "kv":
            scores = layer[f"{side}_scores"]
            assert [score["method"] for score in scores] == METHODS
            assert all(len(score["clip_ratios"]) == KV_HEADS for score in scores)
            chosen = next(score for score in scores if score["method"] == layer[f"{side}_method"])
            assert chosen["error"] == min(score["error"] for score in scores[1:])
        assert layer["tokens"] == 800 and layer["kv_samples"] == 672  # of 3 sequences one is held back
        assert layer["scored_tokens"] == 336 and layer["scored_recent_tokens"] == 64
        assert layer["error"] < layer["naive_error"] and layer["inversion_error"] < 1e-4
        assert len(layer["k_spectrum"]) == DIM and layer["k_spectrum"] == sorted(layer["k_spectrum"], reverse=True)


def test_table_is_that_of_the_report(best):
    path, done = best
    layers = json.loads(tensor_files.read(path)[1]["report"])["layers"]
    for side in "kv":
        part = done.stdout.split(f"\n{side.upper()}  method")[1].split("\n\n")[0]
        rows = {words[0]: words[1:] for words in map(str.split, part.splitlines()[1:])}
        assert list(rows) == METHODS
        for method, words in rows.items():
            errors = [score["error"] for layer in layers for score in layer[f"{side}_scores"]
                      if score["method"] == method]
            assert float(words[0]) == pytest.approx(np.median(errors), abs=6e-6)
            times = sum(layer[f"{side}_method"] == method for layer in layers)
            assert words[2:] == ([str(times)] if times else [])
        assert rows["naive"][1] == "none"
    assert f"wrote {path}" in done.stdout
    assert hashlib.sha256(path.read_bytes()).hexdigest() in done.stdout


def test_same_dump_gives_the_same_file(calibrate, dump, best):
    _, again = calibrate(dump, "--model", "made-up \u2603", "--threads", 1)
    assert again.read_bytes() == best[0].read_bytes()


def test_balanced_is_better_than_hadamard_where_keys_have_loud_channels(report, dump):
    layer = report(dump)[0]["layers"][0]
    errors = {score["method"]: score["error"] for score in layer["k_scores"]}
    assert errors["balanced+offset"] < 0.5 * errors["hadamard+offset"] < errors["naive"]


def test_published_method_with_its_own_clip(report, dump):
    found, out = report(dump, "--method", "oscar", "--clip-k", "0.96", "--clip-v", "0.92")
    tensors, metadata = tensor_files.read(out)
    assert metadata["k_methods"] == metadata["v_methods"] == "oscar oscar"
    assert tensors["k.forward"].shape[1] == 1 and not tensors["k.offset"].any()
    assert np.all(tensors["k.clip_ratio"] == np.float32(0.96)) and np.all(tensors["v.clip_ratio"] == np.float32(0.92))
    forward = tensors["k.forward"].astype(np.float64)
    assert np.array_equal(tensors["k.inverse"], tensors["k.forward"].transpose(0, 1, 3, 2))
    assert np.abs(forward @ forward.transpose(0, 1, 3, 2) - np.eye(DIM)).max() <= 1e-6
    assert [score["method"] for score in found["layers"][0]["k_scores"]] == ["naive", "oscar"]


@pytest.mark.parametrize("arguments, methods", [
    (["--method", "identity"], ["identity"]), (["--method", "hadamard"], ["hadamard"]),
    (["--method", "hadamard", "--offset"], ["hadamard+offset"]),
    (["--method", "oscar", "--per-head"], ["oscar-head"]),
    (["--method", "balanced"], ["balanced", "balanced+offset"]),
    (["--no-offset", "--per-layer"], ["hadamard", "oscar", "balanced"]),
    (["--per-head", "--offset"], ["hadamard+offset", "oscar-head+offset", "balanced+offset"])])
def test_methods_that_are_compared(report, dump, arguments, methods):
    found, _ = report(dump, *arguments)
    for side in "kv":
        assert [score["method"] for score in found["layers"][1][f"{side}_scores"]] == ["naive", *methods]


def test_more_bits_smaller_groups_and_fp32_params_are_better(report, dump):
    def error(*arguments):
        return report(dump, "--method", "hadamard", *arguments)[0]["layers"][0]["error"]

    plain = error()
    assert error("--k-bits", 4, "--v-bits", 4) < 0.3 * plain
    assert error("--group", 16) < plain
    assert error("--params", "fp32") == pytest.approx(plain, rel=0.02)


def test_condition_number_is_held(report, dump):
    found, _ = report(dump, "--method", "balanced", "--condition-max", 5)
    assert all(layer["k_condition"] <= 5.01 for layer in found["layers"])


def test_file_fits_encode(build_dir, best, dump, tmp_path):
    rows, _ = tensor_files.read(dump / "layer_1.safetensors")
    source = tensor_files.write(tmp_path / "kv.safetensors", {side: rows[side] for side in "kv"})
    for verb, *words in (["encode", source, "-o", tmp_path / "c", "--transform", best[0], "--layer", 1],
                         ["decode", tmp_path / "c", "-o", tmp_path / "d"]):
        done = tensor_files.run(build_dir, verb, *words)
        assert done.returncode == 0, done.stderr
    found, _ = tensor_files.read(tmp_path / "d")
    for side in "kv":
        centred = rows[side] - rows[side].mean(0)
        assert np.linalg.norm(found[side] - rows[side]) < 0.6 * np.linalg.norm(centred)


# What goes in.

def split_dump(dump, folder, dtype="F32"):
    """The same tokens in a file a sequence, as dumps of several prompts come."""
    for number in range(2):
        tensors, _ = tensor_files.read(dump / f"layer_{number}.safetensors")
        (folder / f"layer_{number}").mkdir(parents=True)
        for part in range(3):
            rows = {name: tensors[name][part * 400:(part + 1) * 400] for name in "qkv"}
            if dtype == "BF16":
                rows = {name: ("BF16", tensor_files.to_bf16(values)) for name, values in rows.items()}
            tensor_files.write(folder / f"layer_{number}" / f"{part}.safetensors", rows)
    return folder


def test_a_file_a_sequence_is_the_same_as_one_file(calibrate, dump, best, tmp_path):
    _, out = calibrate(split_dump(dump, tmp_path / "split"), "--model", "made-up \u2603")
    assert out.read_bytes() == best[0].read_bytes()


def test_bf16_dumps(report, dump, tmp_path):
    found, _ = report(split_dump(dump, tmp_path / "split", "BF16"))
    assert found["layers"][0]["error"] < 0.1 * found["layers"][0]["naive_error"]


def test_files_by_name(report, dump):
    found, _ = report([dump / "layer_1.safetensors", dump / "layer_0.safetensors"])
    assert len(found["layers"]) == 2


# What people see.

def test_poor_layers_are_named_with_what_to_do(calibrate, dump):
    done, _ = calibrate(dump, "--method", "hadamard")
    assert done.returncode == 0
    assert "above 10 % in layers 0, 1" in done.stderr
    assert "--k-bits 4" in done.stderr and "--recent-tokens" in done.stderr


def test_transforms_no_better_than_naive_are_named(calibrate, dump):
    done, _ = calibrate(dump, "--method", "identity", "--clip-k", "0", "--clip-v", "0")
    assert "no better than naive quantisation in layers 0, 1" in done.stderr and "--method best" in done.stderr


def test_large_condition_numbers_are_named(calibrate, dump):
    done, _ = calibrate(dump)
    assert "condition numbers above 15 in layers 0, 1" in done.stderr
    done, _ = calibrate(dump, "--condition-max", 5)
    assert "condition" not in done.stderr


def test_short_sequences_and_few_tokens_are_named(calibrate, tmp_path):
    done, _ = calibrate(synthetic_dump.write(tmp_path / "d", layers=1, tokens=190))
    assert "16 tokens a channel in layers 0" in done.stderr
    assert "--recent-tokens 63" in done.stderr


def test_dumps_of_any_size_are_streamed(build_dir, tmp_path):
    """Several files of a layer, larger together than the memory that may be had."""
    rng = np.random.default_rng(1)
    rows = {name: rng.normal(size=(30_000, heads, DIM)).astype(np.float32) for name, heads in zip("qkv", (4, 2, 2))}
    rows["seq_lens"] = np.full(15, 2000, np.int64)
    paths = [tensor_files.write(tmp_path / f"layer_0.{part}.safetensors", rows) for part in range(4)]
    most = 64 << 20  # RLIMIT_DATA counts what is allocated, not the files that are mapped
    assert sum(path.stat().st_size for path in paths) > 1.8 * most
    done = tensor_files.run(build_dir, "calibrate", *paths, "-o", tmp_path / "set", "--method", "hadamard", "--threads",
                            1, "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"][0]["tokens"] == 116_000


def test_progress_is_drawn_on_a_terminal_only(calibrate, dump):
    done, _ = calibrate(dump)
    assert "[" not in done.stderr
    master, slave = open_terminal()
    try:
        done, _ = calibrate(dump, stderr=slave)
        os.close(slave)
        drawn = os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
    assert done.returncode == 0
    assert re.search(r"calibrating \[#{15}\.{15}\] 1/2 layers", drawn)
    assert re.search(r"calibrating \[#{30}\] 2/2 layers", drawn)


def test_help_says_what_a_dump_is(build_dir):
    done = tensor_files.run(build_dir, "calibrate", "--help")
    assert done.returncode == 0
    for word in ("seq_lens", "layer_<number>", "[tokens, heads, head_dim]", "after RoPE", "--clip-k", "0.96"):
        assert word in " ".join(done.stdout.split()), word


# What is refused, with exit status 1 and no file.

@pytest.fixture
def refusal(calibrate):
    def call(source, *arguments):
        done, out = calibrate(source, *arguments)
        assert done.returncode == 1 and not out.exists() and done.stdout == ""
        assert done.stderr.startswith("oscarkv: ")
        return done.stderr
    return call


def damaged(dump, folder, damage, layer=1):
    """A copy of the dump with one layer changed."""
    folder.mkdir()
    for number in range(2):
        tensors, _ = tensor_files.read(dump / f"layer_{number}.safetensors")
        if number == layer:
            tensors = {name: array.copy() for name, array in tensors.items()}
            damage(tensors)
        tensor_files.write(folder / f"layer_{number}.safetensors", tensors)
    return folder


@pytest.mark.parametrize("tensor, head, row", [("q", 2, 7), ("k", 1, 100), ("v", 0, 1190)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(refusal, dump, tmp_path, tensor, head, row, value):
    message = refusal(damaged(dump, tmp_path / "d", lambda t: t[tensor].__setitem__((row, head, 3), value)))
    assert f"layer 1, tensor {tensor}, head {head}, token {row}" in message


def test_too_few_tokens(refusal, tmp_path):
    message = refusal(synthetic_dump.write(tmp_path / "d", layers=1, sequences=2, tokens=150))
    assert "layer 0" in message and "86 tokens behind the sinks" in message and str(4 * DIM) in message


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.pop("v"), ["layer 1", "no tensor 'v'"]),
    (lambda t: t.update(q=t["q"][0]), ["layer 1", "'q'", "3 dimensions"]),
    (lambda t: t.update(k=t["k"].astype(np.float16)), ["layer 1", "tensor k", "F16"]),
    (lambda t: t.update(v=t["v"][:-1]), ["layer 1", "v has 1199 tokens"]),
    (lambda t: t.update(q=t["q"][:, :3]), ["layer 1", "multiple of KV heads"]),
    (lambda t: t.update(k=t["k"][:, :, :16]), ["layer 1", "do not belong together"]),
    (lambda t: t.update(q=t["q"][:, :, :24], k=t["k"][:, :, :24]), ["layer 1", "multiples of 16"]),
    (lambda t: t.update(v=t["v"][:, :, :16]), ["layer 1", "layer 0"]),
    (lambda t: t.update(q=t["q"][:, :2]), ["layer 1", "layer 0"]),
    (lambda t: t.update(seq_lens=np.array([400, 400], np.int64)), ["layer 1", "add up to 800"]),
    (lambda t: t.update(seq_lens=np.array([1300, -100], np.int64)), ["layer 1", "seq_lens entry 0"]),
    (lambda t: t.update(seq_lens=np.array([1200.0])), ["layer 1", "seq_lens"])])
def test_layers_of_another_shape(refusal, dump, tmp_path, damage, words):
    message = refusal(damaged(dump, tmp_path / "d", damage))
    assert all(word in message for word in words), message


def test_files_of_a_layer_that_differ(refusal, dump, tmp_path):
    folder = split_dump(dump, tmp_path / "d")
    tensors, _ = tensor_files.read(folder / "layer_1" / "2.safetensors")
    tensor_files.write(folder / "layer_1" / "2.safetensors", {**tensors, "v": tensors["v"][:, :, :16]})
    message = refusal(folder)
    assert "layer 1" in message and "2.safetensors" in message and "another shape" in message


def test_missing_layers_names_and_files(refusal, dump, tmp_path):
    assert "layer 0 is missing" in refusal(dump / "layer_1.safetensors")
    tensors, _ = tensor_files.read(dump / "layer_0.safetensors")
    assert "layer_<number>" in refusal(tensor_files.write(tmp_path / "zero.safetensors", tensors))
    (tmp_path / "empty").mkdir()
    assert "no .safetensors files" in refusal(tmp_path / "empty")
    assert "opening" in refusal(tmp_path / "layer_0.safetensors")


def test_a_folder_that_is_not_there_is_said_before_the_work(build_dir, dump, tmp_path):
    out = tmp_path / "missing" / "set.safetensors"
    done = tensor_files.run(build_dir, "calibrate", dump, "-o", out)
    assert done.returncode == 1 and f"cannot write {out}" in done.stderr and done.stdout == ""


def test_scores_beyond_all_bounds_are_shown(build_dir, tmp_path):
    """JSON has no infinity; a transform whose rows cannot be held must not look perfect."""
    layer = {"k_method": "x", "v_method": "x", "error": None, "naive_error": 0.5,
             **{f"{side}_scores": [{"method": "naive", "error": 0.25, "clip_ratios": [0]},
                                   {"method": "x", "error": None, "clip_ratios": [0]}] for side in "kv"}}
    path = tensor_files.write_transform(tmp_path / "t", {side: np.eye(32)[None, None] for side in "kv"},
                                        report={"method": "x", "layers": [layer]})
    done = tensor_files.run(build_dir, "transform", "show", path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^   x +inf +none +1$", done.stdout, re.M) and "K and V together: inf chosen" in done.stdout
    done = tensor_files.run(build_dir, "transform", "show", path, "--plot", tmp_path / "t.png", "--python",
                            sys.executable)
    assert done.returncode == 0 and (tmp_path / "t.png").exists(), done.stderr


def test_group_that_does_not_divide(refusal, dump):
    assert "64" in refusal(dump, "--group", 64)


@pytest.mark.parametrize("arguments", [["--method", "magic"], ["--k-bits", "3"], ["--per-head", "--per-layer"],
                                       ["--offset", "--no-offset"], ["--clip-k", "1.5"], ["--clip-v", "-1"],
                                       ["--held-back", "1.0"], ["--threads", "-1"], ["--nothing"]])
def test_bad_options(build_dir, dump, tmp_path, arguments):
    out = tmp_path / "set.safetensors"
    done = tensor_files.run(build_dir, "calibrate", dump, "-o", out, *arguments)
    assert done.returncode != 0 and not out.exists() and done.stderr


# Looking into a set.

def test_show_tells_what_is_in_a_set(build_dir, best):
    path, calibrated = best
    done = tensor_files.run(build_dir, "transform", "show", path)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for words in (hashlib.sha256(path.read_bytes()).hexdigest(), "made-up \u2603", "2 layers, 2 KV heads, head dims 32",
                  "--method best", "K in 2 and V in 2 bits", "fp16", "sinks 64, recent window 64", "on 800 tokens"):
        assert words in text, words
    layers = json.loads(tensor_files.read(path)[1]["report"])["layers"]
    for number, layer in enumerate(layers):
        row = next(line.split() for line in text.splitlines() if line.startswith(f"    {number}  "))
        assert row[1] == layer["k_method"] and row[4] == layer["v_method"]
        assert float(row[3]) == pytest.approx(layer["k_condition"], abs=0.06)
        assert float(row[-2]) == pytest.approx(layer["error"], abs=6e-6)
        assert float(row[-1]) == pytest.approx(layer["naive_error"], abs=6e-6)
    table = calibrated.stdout.split("wrote")[0]
    assert table in text and done.stderr == calibrated.stderr


def test_show_as_json(build_dir, best):
    path, _ = best
    done = tensor_files.run(build_dir, "transform", "show", path, "--json")
    shown = json.loads(done.stdout)
    tensors, metadata = tensor_files.read(path)
    assert shown["report"] == json.loads(metadata["report"])
    assert shown["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shown["kv_heads"] == KV_HEADS and shown["k_head_dim"] == DIM
    for number, layer in enumerate(shown["layers"]):
        forward = tensors["k.forward"][number].astype(np.float64)
        values = np.linalg.svd(forward, compute_uv=False)
        assert layer["k"]["condition"] == pytest.approx((values[:, 0] / values[:, -1]).max(), rel=1e-6)
        product = forward @ tensors["k.inverse"][number]
        assert layer["k"]["inversion_error"] == pytest.approx(np.abs(product - np.eye(DIM)).max(), rel=1e-6)
        assert layer["k"]["clip_ratios"] == pytest.approx(tensors["k.clip_ratio"][number].tolist())
        assert layer["k"]["offset"] is True and layer["k"]["transforms"] == KV_HEADS


def test_show_without_a_report(build_dir, tmp_path):
    eye = {side: np.eye(32)[None, None] for side in "kv"}
    path = tensor_files.write_transform(tmp_path / "t.safetensors", eye, clip={"k": [[0.9]]})
    done = tensor_files.run(build_dir, "transform", "show", path)
    assert done.returncode == 0 and "no scores" in done.stdout and "0.900" in done.stdout and "none" in done.stdout


@pytest.mark.parametrize("report, words", [
    ([], "an object"), ({"layers": 3}, "layers must be a list"), ({"k_bits": -1}, "k_bits must be a count"),
    ({"warnings": [1]}, "warnings must be texts"),
    ({"layers": [{"error": "none"}]}, "layers[0].error must be a number"),
    ({"layers": [{}, {"k_scores": [{"clip_ratios": 1}]}]}, "layers[1].k_scores[0].clip_ratios must be a list")])
def test_show_refuses_reports_of_other_kinds(build_dir, tmp_path, report, words):
    eye = {side: np.eye(32)[None, None] for side in "kv"}
    path = tensor_files.write_transform(tmp_path / "t.safetensors", eye, report=report)
    done = tensor_files.run(build_dir, "transform", "show", path)
    assert done.returncode == 1 and words in done.stderr and str(path) in done.stderr


def test_show_refuses_what_is_no_set(build_dir, dump, tmp_path):
    done = tensor_files.run(build_dir, "transform", "show", dump / "layer_0.safetensors")
    assert done.returncode == 1 and "layer_0.safetensors" in done.stderr and "format" in done.stderr
    assert tensor_files.run(build_dir, "transform", "show", tmp_path / "nowhere").returncode == 1
    assert tensor_files.run(build_dir, "transform").returncode != 0


def test_plot_is_drawn(build_dir, best, tmp_path):
    done = tensor_files.run(build_dir, "transform", "show", best[0], "--plot", tmp_path / "t.png", "--python",
                            sys.executable)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "t.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 20_000


def test_plot_of_a_set_without_scores(build_dir, tmp_path):
    eye = {side: np.eye(32)[None, None] for side in "kv"}
    path = tensor_files.write_transform(tmp_path / "t.safetensors", eye)
    done = tensor_files.run(build_dir, "transform", "show", path, "--plot", tmp_path / "t.png",
                            "--python", sys.executable)
    assert done.returncode == 0 and (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG"), done.stderr


def test_plot_without_python_says_the_command(build_dir, best, tmp_path):
    for python, words in (("/nowhere/python", "did not start"), ("/bin/false", "ended with status 1")):
        done = tensor_files.run(build_dir, "transform", "show", best[0], "--plot", tmp_path / "t.png",
                                "--python", python)
        assert done.returncode == 1 and words in done.stderr
        assert f"{python} -m oscarkv.plot_transform {best[0]} {tmp_path / 't.png'}" in done.stderr
        assert "--python" in done.stderr and "matplotlib" in done.stderr
    done = tensor_files.run(build_dir, "transform", "show", best[0], "--plot", tmp_path / "no" / "t.png", "--python",
                            sys.executable)
    assert done.returncode == 1 and "refused, see above" in done.stderr


def test_query_heads_share_kv_heads(report, tmp_path):
    """Every query head is scored, of every KV head."""
    found, _ = report(synthetic_dump.write(tmp_path / "d", layers=1))
    assert found["layers"][0]["scored_queries"] == 32 * Q_HEADS
