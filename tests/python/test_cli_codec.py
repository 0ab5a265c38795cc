"""`oscarkv encode` and `oscarkv decode` against an implementation of the codec in numpy; every option and error."""

import hashlib
import json
import resource

import numpy as np
import pytest
import tensor_files

TOKENS, HEADS, DIM = 70, 2, 64


# The codec in numpy: fp32 after the transform, as the files say.

def clip_rows(rows, ratio):
    dim = rows.shape[-1]
    index = min(int(float(np.float32(ratio)) * dim), dim - 1) if 0 < ratio < 1 else dim - 1
    limit = np.sort(np.abs(rows), axis=-1)[..., index:index + 1]
    return np.clip(rows, -limit, limit)


def quantise(rows, bits=2, group=0):
    """Codes [..., dim] and fp32 params [..., dim / group, 2] of transformed, clipped rows."""
    dim = rows.shape[-1]
    groups = rows.reshape(*rows.shape[:-1], dim // (group or dim), group or dim)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    most = np.float32(2**bits - 1)
    scale = np.maximum(high - low, np.float32(1e-8)) / most
    zero = np.float32(0) - low / scale
    codes = np.clip((groups / scale + zero) + np.float32(0.5), 0, most).astype(np.uint8)
    return codes.reshape(rows.shape), np.concatenate([scale, zero], -1)


def pack(codes, bits=2):
    """Byte i holds dims i, i + dim / c, ... from its lowest bits up, with c codes a byte."""
    parts = np.split(codes, 8 // bits, axis=-1)
    return np.bitwise_or.reduce([part << np.uint8(bits * place) for place, part in enumerate(parts)])


def unpack(packed, bits=2):
    return np.concatenate([packed >> np.uint8(bits * place) & np.uint8(2**bits - 1) for place in range(8 // bits)], -1)


def dequantise(codes, params):
    groups = codes.reshape(*codes.shape[:-1], params.shape[-2], -1).astype(np.float32)
    params = params.astype(np.float32)
    return ((groups - params[..., 1:]) * params[..., :1]).reshape(codes.shape)


def sylvester(dim):
    matrix = np.ones((1, 1))
    while len(matrix) < dim:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(dim)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def rows(rng):
    k = rng.normal(size=(TOKENS, HEADS, DIM)).astype(np.float32)
    k[..., 5] *= 8
    return {"k": k + 1, "v": rng.normal(size=(TOKENS, HEADS, DIM)).astype(np.float32)}


@pytest.fixture
def cli(build_dir, tmp_path):
    """cli("encode", ...) -> (tensors, metadata) of OUT; the input may be tensors."""
    def call(verb, source, *arguments):
        if isinstance(source, dict):
            source = tensor_files.write(tmp_path / "in.safetensors", source)
        out = tmp_path / f"{verb}.safetensors"
        done = tensor_files.run(build_dir, verb, source, "-o", out, *arguments)
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.glob("*.partial*"))
        return *tensor_files.read(out), done
    return call


@pytest.fixture
def refusal(build_dir, tmp_path):
    """The message of a run that must fail, leaving no output."""
    def call(verb, source, *arguments):
        if isinstance(source, dict):
            source = tensor_files.write(tmp_path / "in.safetensors", source)
        out = tmp_path / "refused.safetensors"
        done = tensor_files.run(build_dir, verb, source, "-o", out, *arguments)
        assert done.returncode != 0 and not out.exists() and not list(tmp_path.glob("*.partial*"))
        assert done.stderr.startswith("oscarkv: ") or done.stderr.startswith("--"), done.stderr
        return done.stderr
    return call


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group", [0, 16, 32, 64])
@pytest.mark.parametrize("params", ["fp16", "fp32"])
def test_identity_is_bit_equal_to_numpy(cli, rows, backend, bits, group, params):
    found, metadata, _ = cli("encode", rows, "--transform", "identity", "--backend", backend, "--group", group,
                             "--params", params, "--k-bits", bits, "--v-bits", bits, "--clip-k", "0.92",
                             "--clip-v", "0.8")
    for side, ratio in (("k", 0.92), ("v", 0.8)):
        codes, expected = quantise(clip_rows(rows[side], ratio), bits, group)
        assert np.array_equal(found[f"{side}_codes"], pack(codes, bits))
        assert found[f"{side}_codes"].shape == (TOKENS, HEADS, DIM * bits // 8)
        stored = expected.astype(np.float16 if params == "fp16" else np.float32)
        assert np.array_equal(found[f"{side}_params"], stored)
    assert metadata["format"] == "oscarkv-codes-1" and metadata["params"] == params
    assert metadata["k_bits"] == str(bits) and metadata["transform"] == "identity"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_decode_is_bit_equal_to_numpy(cli, rows, tmp_path, backend):
    encoded, _, _ = cli("encode", rows, "--transform", "identity", "--group", 32)
    found, metadata, _ = cli("decode", tmp_path / "encode.safetensors", "--basis", "transformed", "--backend", backend)
    for side in "kv":
        expected = dequantise(unpack(encoded[f"{side}_codes"]), encoded[f"{side}_params"])
        assert np.array_equal(found[side], expected)
    assert metadata["basis"] == "transformed"


def check_rotated(found, rows, forward, offset, clip):
    """The transform's sum may be taken in any order, so that a code at a rounding boundary may be its neighbour."""
    for side in "kv":
        y = np.einsum("thi,hij->thj", rows[side].astype(np.float64) - offset[side], forward[side]).astype(np.float32)
        clipped = np.stack([clip_rows(y[:, h], clip[side][h]) for h in range(HEADS)], 1)
        codes, params = quantise(clipped)
        got = unpack(found[f"{side}_codes"])
        assert np.mean(got != codes) < 2e-4
        assert np.max(np.abs(got.astype(int) - codes)) <= 1
        np.testing.assert_allclose(found[f"{side}_params"].astype(np.float64), params, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_hadamard(cli, rows, backend):
    found, metadata, _ = cli("encode", rows, "--transform", "hadamard", "--backend", backend)
    h = np.broadcast_to(sylvester(DIM), (HEADS, DIM, DIM))
    check_rotated(found, rows, {"k": h, "v": h}, {"k": 0, "v": 0}, {"k": [0, 0], "v": [0, 0]})
    assert metadata["transform"] == "hadamard" and metadata["k_clip"] == "0,0"


@pytest.fixture
def transform(tmp_path, rng):
    """A file of 3 layers, K per head with offsets and clips, V shared; and what it holds."""
    forward = {"k": rng.normal(size=(3, HEADS, DIM, DIM)) / 8 + 2 * np.eye(DIM),
               "v": np.stack([sylvester(DIM)[None]] * 3)}
    offset = {"k": rng.normal(size=(3, HEADS, DIM)), "v": np.zeros((3, 1, DIM))}
    clip = {"k": np.array([[0.9, 0.8], [0.95, 0.85], [0.7, 0]]), "v": np.full((3, 1), 0.92)}
    path = tensor_files.write_transform(tmp_path / "t.safetensors", forward, offset, clip)
    return path, forward, offset, clip


def both_heads(values, layer):
    return np.broadcast_to(values[layer], (HEADS, *values[layer].shape[1:]))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_transform_file_layer_heads_offset_and_clip(cli, rows, transform, layer):
    path, forward, offset, clip = transform
    found, metadata, _ = cli("encode", rows, "--transform", path, "--layer", layer)
    of_layer = [{side: both_heads(part[side], layer) for side in "kv"} for part in (forward, offset, clip)]
    check_rotated(found, rows, *of_layer)
    assert metadata["transform"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["transform_file"] == str(path) and metadata["layer"] == str(layer)


def test_clip_options_replace_the_files_own(cli, rows, transform):
    path, forward, offset, _ = transform
    found, metadata, _ = cli("encode", rows, "--transform", path, "--clip-k", "0", "--clip-v", "0.5")
    check_rotated(found, rows, {side: both_heads(forward[side], 0) for side in "kv"},
                  {side: both_heads(offset[side], 0) for side in "kv"}, {"k": [0, 0], "v": [0.5, 0.5]})
    assert metadata["k_clip"] == "0,0" and metadata["v_clip"] == "0.5,0.5"


def test_bits_other_than_fitted_are_named(cli, rows, tmp_path):
    eye = {side: np.eye(DIM)[None, None] for side in "kv"}
    path = tensor_files.write_transform(tmp_path / "t.safetensors", eye, report={"k_bits": 4, "v_bits": 2})
    _, _, done = cli("encode", rows, "--transform", path)
    assert "fitted for K in 4 bits, codes have 2" in done.stderr and "for V" not in done.stderr
    _, _, done = cli("encode", rows, "--transform", path, "--k-bits", 4)
    assert done.stderr == ""


def test_layer_zero_is_the_default(cli, rows, transform):
    default, _, _ = cli("encode", rows, "--transform", transform[0])
    chosen, _, _ = cli("encode", rows, "--transform", transform[0], "--layer", 0)
    assert all(np.array_equal(default[name], chosen[name]) for name in default)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_input_dtypes(cli, rows, dtype):
    stored = {"F32": lambda x: x, "F16": lambda x: x.astype(np.float16), "BF16": tensor_files.to_bf16}[dtype]
    loaded = {"F32": lambda x: x, "F16": lambda x: x.astype(np.float32), "BF16": tensor_files.from_bf16}[dtype]
    source = {side: (dtype, stored(x)) for side, x in rows.items()}
    found, metadata, _ = cli("encode", source, "--transform", "identity")
    for side, values in rows.items():
        codes, _ = quantise(loaded(stored(values)))
        assert np.array_equal(unpack(found[f"{side}_codes"]), codes)
        assert metadata[f"{side}_dtype"] == {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[dtype]


@pytest.mark.parametrize("transform_name", ["identity", "hadamard", "file"])
@pytest.mark.parametrize("backend, dtype", [("cpu", None), ("cpu", "fp32"), ("cpu", "fp16"), ("cpu", "bf16"),
                                            ("reference", "fp32"), ("reference", "bf16")])
def test_decode_inverts(cli, rows, tmp_path, transform, transform_name, backend, dtype):
    """Within the rounding of the dtype; the cpu back end holds the inverse in 8 bits for bf16 results, else in 15."""
    name = transform[0] if transform_name == "file" else transform_name
    bf16 = {side: ("BF16", tensor_files.to_bf16(values)) for side, values in rows.items()}
    encoded, _, _ = cli("encode", bf16, "--transform", name, "--layer", 1)
    # Nothing but the file is needed: it says where its transform is.
    arguments = ["--dtype", dtype] if dtype else []
    found, metadata, _ = cli("decode", tmp_path / "encode.safetensors", "--backend", backend, *arguments)
    for side in "kv":
        if transform_name == "file":
            stored, _ = tensor_files.read(transform[0])
            inverse, m = both_heads(stored[f"{side}.inverse"], 1), both_heads(stored[f"{side}.offset"], 1)
        else:
            one = np.eye(DIM) if name == "identity" else sylvester(DIM)
            inverse, m = np.broadcast_to(one, (HEADS, DIM, DIM)), 0
        y = dequantise(unpack(encoded[f"{side}_codes"]), encoded[f"{side}_params"])
        expected = np.einsum("thi,hij->thj", y.astype(np.float64), inverse) + m
        read = tensor_files.from_bf16(found[side]) if dtype in (None, "bf16") else found[side]
        steps = np.inf if backend == "reference" else 127 if dtype in (None, "bf16") else 127 * 128
        entries = np.abs(y).sum(-1, keepdims=True) * np.abs(inverse).max(-2) * 0.5 / steps
        bound = np.abs(expected) * {"fp32": 1e-6, "fp16": 2**-11}.get(dtype, 2**-8) + entries + 5e-5
        assert np.all(np.abs(read - expected) <= bound)
        assert found[side].dtype == {"fp32": np.float32, "fp16": np.float16}.get(dtype, np.uint16)
    assert metadata["basis"] == "model"


def test_head_dims_of_k_and_v_may_differ(cli, rng, tmp_path):
    rows = {"k": rng.normal(size=(9, 3, 128)).astype(np.float32), "v": rng.normal(size=(9, 3, 16)).astype(np.float32)}
    encoded, _, _ = cli("encode", rows, "--transform", "hadamard", "--k-bits", 4)
    assert encoded["k_codes"].shape == (9, 3, 64) and encoded["v_codes"].shape == (9, 3, 4)
    assert encoded["k_params"].shape == encoded["v_params"].shape == (9, 3, 1, 2)
    found, _, _ = cli("decode", tmp_path / "encode.safetensors")
    for side in "kv":
        error = np.linalg.norm(found[side] - rows[side]) / np.linalg.norm(rows[side])
        assert error < (0.2 if side == "k" else 0.5)


def test_head_dim_may_be_given_as_the_group(cli, rng):
    rows = {side: rng.normal(size=(4, 1, 128)).astype(np.float32) for side in "kv"}
    found, _, _ = cli("encode", rows, "--transform", "identity", "--group", 128)
    assert found["k_params"].shape == (4, 1, 1, 2)


def test_codes_of_another_implementation_decode_without_metadata(cli, rows, tmp_path):
    tensors = {}
    for side in "kv":
        codes, params = quantise(rows[side], group=16)
        tensors[f"{side}_codes"], tensors[f"{side}_params"] = pack(codes), params
    found, _, _ = cli("decode", tensors, "--transform", "identity")
    for side in "kv":
        expected = dequantise(unpack(tensors[f"{side}_codes"]), tensors[f"{side}_params"])
        np.testing.assert_allclose(found[side], expected, rtol=1e-5, atol=1e-5)


def test_backends_agree(cli, rows):
    cpu, _, _ = cli("encode", rows, "--transform", "hadamard", "--clip-k", "0.9", "--backend", "cpu")
    reference, _, _ = cli("encode", rows, "--transform", "hadamard", "--clip-k", "0.9", "--backend", "reference")
    assert np.mean(cpu["k_codes"] != reference["k_codes"]) < 2e-3


def test_bad_rows_are_counted_and_touch_no_other(cli, rows):
    clean, _, _ = cli("encode", rows, "--transform", "hadamard")
    rows["k"][3, 1, 7], rows["v"][5, 0, 0], rows["v"][6, 0] = np.nan, np.inf, 0
    found, _, done = cli("encode", rows, "--transform", "hadamard", "--json")
    summary = json.loads(done.stdout)
    assert summary["nonfinite_rows"] == 2 and summary["constant_rows"] == 1
    assert summary["rows"] == 2 * TOKENS * HEADS and summary["overflow_rows"] == 0
    assert "2 rows with a NaN or an infinity" in done.stderr
    for name, array in found.items():
        touched = np.argwhere((array != clean[name]).reshape(TOKENS, HEADS, -1).any(-1))
        assert {tuple(row) for row in touched} <= ({(3, 1)} if name[0] == "k" else {(5, 0), (6, 0)})
    assert np.isnan(found["k_params"][3, 1, 0, 0])


def test_summary_counts_bytes(cli, rows):
    _, _, done = cli("encode", rows, "--transform", "identity", "--json")
    summary = json.loads(done.stdout)
    assert summary["bytes_in"] == 2 * TOKENS * HEADS * DIM * 4
    assert summary["bytes_out"] == 2 * TOKENS * HEADS * (DIM // 4 + 4)
    _, _, done = cli("encode", rows, "--transform", "identity")
    assert f"{summary['bytes_in']} bytes in, {summary['bytes_out']} out (12.80x less)" in done.stdout


def test_no_tokens_at_all(cli, tmp_path):
    empty = {side: np.zeros((0, 2, 32), np.float32) for side in "kv"}
    encoded, _, _ = cli("encode", empty, "--transform", "identity")
    assert encoded["k_codes"].shape == (0, 2, 8)
    found, _, _ = cli("decode", tmp_path / "encode.safetensors")
    assert found["k"].shape == (0, 2, 32)


def test_long_inputs_are_streamed(build_dir, tmp_path, rng):
    """More tokens than one run holds give the same codes as alone, in less memory than the input has."""
    tokens = 60_000
    few = rng.normal(size=(1000, 4, 128)).astype(np.float32)
    rows = {side: np.tile(few, (tokens // 1000, 1, 1)) for side in "kv"}
    source = tensor_files.write(tmp_path / "long.safetensors", rows)
    anonymous = 200 << 20  # RLIMIT_DATA counts what is allocated, not the file that is mapped
    assert source.stat().st_size > anonymous
    done = tensor_files.run(build_dir, "encode", source, "--transform", "identity",
                            "-o", tmp_path / "codes.safetensors",
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (anonymous, anonymous)))
    assert done.returncode == 0, done.stderr
    found, _ = tensor_files.read(tmp_path / "codes.safetensors")
    expected = np.tile(pack(quantise(few)[0]), (tokens // 1000, 1, 1))
    assert np.array_equal(found["k_codes"], expected) and np.array_equal(found["v_codes"], expected)


# What is refused.

def test_missing_tensor(refusal, rows):
    message = refusal("encode", {"k": rows["k"], "values": rows["v"]}, "--transform", "identity")
    assert "no tensor 'v'" in message and "k, values" in message and "NOT_FOUND" in message


def test_wrong_rank(refusal, rows):
    message = refusal("encode", {**rows, "k": rows["k"][0]}, "--transform", "identity")
    assert "'k'" in message and "3 dimensions" in message and "[2, 64]" in message


def test_wrong_dtype(refusal, rows):
    message = refusal("encode", {**rows, "v": rows["v"].astype(np.float64)}, "--transform", "identity")
    assert "'v'" in message and "F64" in message


@pytest.mark.parametrize("shape", [(TOKENS - 1, HEADS, DIM), (TOKENS, HEADS + 1, DIM)])
def test_k_and_v_of_other_tokens_or_heads(refusal, rows, shape):
    message = refusal("encode", {**rows, "v": np.zeros(shape, np.float32)}, "--transform", "identity")
    assert f"[{TOKENS}, {HEADS}, {DIM}]" in message and str(list(shape)) in message


@pytest.mark.parametrize("dim", [8, 40, 272])
def test_head_dims_that_the_codec_does_not_have(refusal, rows, dim):
    message = refusal("encode", {**rows, "k": np.zeros((TOKENS, HEADS, dim), np.float32)}, "--transform", "identity")
    assert "k_head_dim" in message and str(dim) in message


def test_hadamard_needs_a_power_of_two(refusal):
    message = refusal("encode", {side: np.zeros((4, 1, 48), np.float32) for side in "kv"}, "--transform", "hadamard")
    assert "48" in message


def test_layer_out_of_range(refusal, rows, transform):
    message = refusal("encode", rows, "--transform", transform[0], "--layer", 3)
    assert "no layer 3" in message and "0..2" in message and "OUT_OF_RANGE" in message


@pytest.mark.parametrize("shape", [(4, HEADS + 1, DIM), (4, HEADS, 2 * DIM)])
def test_transform_of_other_heads_or_dims(refusal, transform, shape):
    message = refusal("encode", {side: np.zeros(shape, np.float32) for side in "kv"}, "--transform", transform[0])
    assert f"{HEADS} KV heads, head dims {DIM}" in message and f"{shape[1]} KV heads, head dims {shape[2]}" in message
    assert "FAILED_PRECONDITION" in message


@pytest.mark.parametrize("group", [48, 8, 64])
def test_group_that_does_not_divide(refusal, group):
    message = refusal("encode", {side: np.zeros((4, 1, 96), np.float32) for side in "kv"}, "--transform", "identity",
                      "--group", group)
    assert "group" in message and str(group) in message


def test_inverse_that_does_not_invert(refusal, rows, transform):
    tensors, metadata = tensor_files.read(transform[0])
    tensors["k.inverse"] = tensors["k.inverse"] * 1.5
    tensor_files.write(transform[0], tensors, metadata)
    message = refusal("encode", rows, "--transform", transform[0])
    assert str(transform[0]) in message and "layer 0" in message and "K" in message


@pytest.mark.parametrize("option, value", [("--params", "bf16"), ("--backend", "gpu"), ("--clip-k", "1.5"),
                                           ("--clip-v", "-0.1"), ("--k-bits", "3")])
def test_bad_options(refusal, rows, option, value):
    message = refusal("encode", rows, "--transform", "identity", option, value)
    assert option in message and value in message


def test_missing_files(refusal, rows, tmp_path):
    assert "nowhere" in refusal("encode", tmp_path / "nowhere", "--transform", "identity")
    assert "nowhere" in refusal("encode", rows, "--transform", tmp_path / "nowhere")


def test_output_that_cannot_be_written(build_dir, rows, tmp_path):
    source = tensor_files.write(tmp_path / "in.safetensors", rows)
    out = tmp_path / "missing" / "out.safetensors"
    done = tensor_files.run(build_dir, "encode", source, "--transform", "identity", "-o", out)
    assert done.returncode == 1 and str(out) in done.stderr and "NOT_FOUND" in done.stderr


def test_output_may_replace_the_input(build_dir, rows, tmp_path):
    path = tensor_files.write(tmp_path / "same.safetensors", rows)
    for verb in (["encode", path, "--transform", "identity"], ["decode", path]):
        done = tensor_files.run(build_dir, *verb, "-o", path)
        assert done.returncode == 0, done.stderr
    found, _ = tensor_files.read(path)
    assert found["k"].shape == rows["k"].shape and np.abs(found["v"] - rows["v"]).max() < 2


def test_truncated_input(refusal, rows, tmp_path):
    path = tensor_files.write(tmp_path / "cut.safetensors", rows)
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut.safetensors" in refusal("encode", path, "--transform", "identity")


@pytest.fixture
def encoded(cli, rows, transform, tmp_path):
    tensors, metadata, _ = cli("encode", rows, "--transform", transform[0])
    return tensors, metadata, tmp_path / "encode.safetensors"


def test_decode_refuses_another_transform(refusal, encoded, transform, tmp_path):
    _, metadata, path = encoded
    other = tensor_files.write_transform(tmp_path / "o.safetensors", {side: np.eye(DIM)[None, None] for side in "kv"})
    message = refusal("decode", path, "--transform", other)
    assert metadata["transform"] in message and hashlib.sha256(other.read_bytes()).hexdigest() in message
    assert "FAILED_PRECONDITION" in message
    assert "identity" in refusal("decode", path, "--transform", "identity")


def test_decode_needs_to_know_the_transform(refusal, encoded):
    tensors, _, _ = encoded
    assert "--transform" in refusal("decode", tensors)


@pytest.mark.parametrize("damage, words", [
    (lambda t, m: t.pop("v_params"), ["no tensor 'v_params'"]),
    (lambda t, m: t.update(k_codes=t["k_codes"].astype(np.float32)), ["'k_codes'", "U8"]),
    (lambda t, m: t.update(k_params=t["k_params"][:, :, 0]), ["'k_params'", "4 dimensions"]),
    (lambda t, m: t.update(k_params=t["k_params"][1:]), ["k_params", "does not belong"]),
    (lambda t, m: t.update(k_params=np.repeat(t["k_params"], 3, 2)), ["k_params", "does not belong"]),
    (lambda t, m: t.update(k_params=np.repeat(t["k_params"], 8, 2)), ["k_params", "group"]),
    (lambda t, m: t.update(v_codes=t["v_codes"][:, :1], v_params=t["v_params"][:, :1]), ["same tokens"]),
    (lambda t, m: t.update(k_codes=np.zeros((TOKENS, HEADS, 2048), np.uint8)), ["k_head_dim", "8192"]),
    (lambda t, m: m.update(k_bits="3"), ["k_bits"]),
    (lambda t, m: m.update(layer="last"), ["layer", "last"]),
    (lambda t, m: m.update(layer="99"), ["no layer 99"]),
    (lambda t, m: m.update(v_dtype="int8"), ["v_dtype", "int8"]),
])
def test_decode_refuses_what_does_not_belong_together(refusal, encoded, tmp_path, damage, words):
    tensors, metadata, _ = encoded
    damage(tensors, metadata)
    message = refusal("decode", tensor_files.write(tmp_path / "bad.safetensors", tensors, metadata))
    assert all(word in message for word in words), message


def test_help_says_what_is_read_and_written(build_dir):
    for verb, words in (("encode", ["[tokens, kv_heads, head_dim]", "--clip-k", "none for", "identity"]),
                        ("decode", ["--basis", "k_codes", "--dtype"])):
        done = tensor_files.run(build_dir, verb, "--help")
        text = " ".join(done.stdout.split())
        assert done.returncode == 0 and all(word in text for word in words), text
