"""OSCAR's .pt rotation files are imported, and hostile ones refused; the files are put together by hand here."""

import io
import struct
import sys
import zipfile

import numpy as np
import pytest
import tensor_files
from oscarkv import import_pt, torch_file

DIM = 32


# Pickle instructions, as torch.save writes them.

def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def several(*items):
    return b"(" + b"".join(items) + b"t"


def mapping(items):
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def storage(key, elements, kind="FloatStorage"):
    return several(text("storage"), named("torch", kind), text(key), text("cpu"), number(elements)) + b"Q"


def tensor(key, shape, strides=None, offset=0, elements=None, kind="FloatStorage"):
    """A view of storage `key`, contiguous unless `strides` are given."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1:])) for axis in range(len(shape))]
    arguments = [storage(key, int(np.prod(shape)) if elements is None else elements, kind), number(offset),
                 several(*map(number, shape)), several(*map(number, strides)), b"\x89",
                 named("collections", "OrderedDict") + b")R"]
    return named("torch._utils", "_rebuild_tensor_v2") + several(*arguments) + b"R"


def pickled(value):
    return b"\x80\x02" + value + b"."


def archive(path, pickle, data=None, compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("rotation/data.pkl", pickle)
        file.writestr("rotation/byteorder", order)
        for key, raw in (data or {}).items():
            file.writestr(f"rotation/data/{key}", raw)
    return path


def rotation(rng, dim=DIM):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def layer_entry(key, shape, kind="FloatStorage", eigenvalues=None, **view):
    items = [(text("layer_id"), number(0)), (text("rotation"), tensor(key, shape, kind=kind, **view))]
    if eigenvalues:
        items.append((text("eigenvalues"), tensor(eigenvalues, (shape[-1],))))
    return mapping(items)


def document(layers, objective="qqt_r_h_pbr"):
    """`layers`: (key instruction, entry instruction) each."""
    return pickled(mapping([(text("format_version"), number(1)), (text("objective"), text(objective)),
                            (text("source_grouping"), text("layer")), (text("layers"), mapping(layers))]))


def rotation_file(path, matrices, objective="qqt_r_h_pbr", ids=None, as_text=False):
    ids = ids or range(len(matrices))
    key = (lambda value: text(str(value))) if as_text else number
    layers = [(key(identity), layer_entry(str(at), matrix.shape, eigenvalues=f"{at}e"))
              for at, (identity, matrix) in enumerate(zip(ids, matrices))]
    data = {str(at): matrix.astype("<f4").tobytes() for at, matrix in enumerate(matrices)}
    data |= {f"{at}e": np.arange(matrix.shape[-1], dtype="<f4").tobytes() for at, matrix in enumerate(matrices)}
    return archive(path, document(layers, objective), data)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def matrices(rng):
    return [rotation(rng) for _ in range(3)]


def convert(tmp_path, *files, **options):
    out = tmp_path / "out.safetensors"
    notes = import_pt.convert(list(files), out, **options)
    assert not list(tmp_path.glob("*.partial*"))
    return *tensor_files.read(out), notes


# Good files.

def test_k_and_v_in_either_order(tmp_path, rng, matrices):
    k = rotation_file(tmp_path / "k.pt", matrices)
    others = [rotation(rng) for _ in range(3)]
    v = rotation_file(tmp_path / "v.pt", others, "sst_r_h_pbr")
    for files in ((k, v), (v, k)):
        tensors, metadata, _ = convert(tmp_path, *files, kv_heads=8)
        assert metadata["kv_heads"] == "8" and metadata["k_methods"] == " ".join(["qqt_r_h_pbr"] * 3)
        for side, expected in (("k", matrices), ("v", others)):
            expected = np.stack(expected)[:, None].astype(np.float32)
            assert np.array_equal(tensors[f"{side}.forward"], expected)
            assert np.array_equal(tensors[f"{side}.inverse"], expected.transpose(0, 1, 3, 2))
            assert not tensors[f"{side}.offset"].any()
        assert np.allclose(tensors["k.clip_ratio"], 0.96) and np.allclose(tensors["v.clip_ratio"], 0.92)


def test_one_file_leaves_the_other_side_to_hadamard(tmp_path, matrices):
    tensors, metadata, _ = convert(tmp_path, rotation_file(tmp_path / "v.pt", matrices, "sst_r_h_pbr"), kv_heads=2,
                                   v_clip=0.5, k_clip=0)
    assert metadata["k_methods"] == "hadamard hadamard hadamard"
    assert np.allclose(np.abs(tensors["k.forward"]), DIM**-0.5) and np.array_equal(tensors["v.forward"][2, 0],
                                                                                 matrices[2].astype(np.float32))
    assert not tensors["k.clip_ratio"].any() and np.all(tensors["v.clip_ratio"] == 0.5)


def test_data_free_rotations_serve_both_sides(tmp_path, matrices):
    tensors, _, _ = convert(tmp_path, rotation_file(tmp_path / "h.pt", matrices, "hadamard"), kv_heads=2)
    assert np.array_equal(tensors["k.forward"], tensors["v.forward"])


def test_sparse_layer_ids_as_text_keep_their_order(tmp_path, matrices):
    path = rotation_file(tmp_path / "k.pt", matrices, ids=[11, 3, 7], as_text=True)
    tensors, _, notes = convert(tmp_path, path, kv_heads=2)
    assert np.array_equal(tensors["k.forward"][0, 0], matrices[1].astype(np.float32))
    assert "layers 0..2 are the model's 3, 7, 11" in notes


def test_a_rotation_for_each_head(tmp_path, rng):
    stacked = [np.stack([rotation(rng) for _ in range(4)]) for _ in range(2)]
    path = rotation_file(tmp_path / "k.pt", stacked)
    tensors, metadata, _ = convert(tmp_path, path)
    assert metadata["kv_heads"] == "4" and tensors["k.forward"].shape == (2, 4, DIM, DIM)
    assert tensors["v.forward"].shape == (2, 1, DIM, DIM)
    with pytest.raises(torch_file.Refused, match="kv-heads is 8"):
        convert(tmp_path, path, kv_heads=8)


@pytest.mark.parametrize("kind, stored, tolerance", [
    ("DoubleStorage", lambda m: m.astype("<f8"), 1e-7), ("HalfStorage", lambda m: m.astype("<f2"), 1e-3),
    ("BFloat16Storage", tensor_files.to_bf16, 4e-3)])
def test_other_dtypes_are_inverted_exactly(tmp_path, rng, kind, stored, tolerance):
    matrix = rotation(rng)
    path = archive(tmp_path / "k.pt", document([(number(0), layer_entry("0", matrix.shape, kind))]),
                   {"0": stored(matrix).tobytes()})
    tensors, _, _ = convert(tmp_path, path, kv_heads=1)
    assert np.abs(tensors["k.forward"][0, 0] - matrix).max() <= tolerance
    product = tensors["k.forward"][0, 0].astype(np.float64) @ tensors["k.inverse"][0, 0]
    assert np.abs(product - np.eye(DIM)).max() < 1e-6


def test_views_of_one_storage(tmp_path, rng):
    first, second = rotation(rng), rotation(rng)
    both = np.concatenate([first.T.ravel(), second.ravel()]).astype("<f4")
    size, shape = DIM * DIM, (DIM, DIM)
    layers = [(number(0), layer_entry("0", shape, strides=(1, DIM), elements=2 * size)),
              (number(1), layer_entry("0", shape, offset=size, elements=2 * size))]
    tensors, _, _ = convert(tmp_path, archive(tmp_path / "k.pt", document(layers), {"0": both.tobytes()}), kv_heads=1)
    assert np.array_equal(tensors["k.forward"][:, 0], np.stack([first, second]).astype(np.float32))


def test_memo_and_later_protocols(tmp_path, rng):
    """Protocol 4 names globals on the stack and numbers its memo itself."""
    matrix = rotation(rng)
    entry = layer_entry("0", matrix.shape).replace(
        named("torch._utils", "_rebuild_tensor_v2"), b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94")
    layers = text("layers") + b"q\x09" + mapping([(number(0), entry)])
    path = archive(tmp_path / "k.pt", b"\x80\x04" + b"}(" + layers + b"u.", {"0": matrix.astype("<f4").tobytes()})
    tensors, metadata, _ = convert(tmp_path, path, kv_heads=1)
    assert metadata["k_methods"] == "imported" and np.array_equal(tensors["k.forward"][0, 0], matrix.astype(np.float32))


# Through the command line.

def test_command_line_imports_and_shows(build_dir, tmp_path, matrices):
    path, out = rotation_file(tmp_path / "k_rotation.pt", matrices), tmp_path / "t.safetensors"
    done = tensor_files.run(build_dir, "transform", "import", path, "-o", out, "--kv-heads", 2, "--clip-k", "0.9",
                            "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "imported from k_rotation.pt; clip ratios 0.9 of K and 0.92 of V" in done.stdout
    shown = tensor_files.run(build_dir, "transform", "show", out)
    assert shown.returncode == 0, shown.stderr
    assert "3 layers, 2 KV heads" in shown.stdout and "qqt_r_h_pbr" in shown.stdout and "no scores" in shown.stdout
    assert "imported from k_rotation.pt" in shown.stdout
    path.write_bytes(b"nothing")
    done = tensor_files.run(build_dir, "transform", "import", path, "-o", out, "--python", sys.executable)
    assert done.returncode == 1 and "not a zip archive" in done.stderr and "refused" in done.stderr


@pytest.mark.parametrize("arguments", [["a.pt", "b.pt", "c.pt"], ["a.pt", "--kv-heads", "0"],
                                       ["a.pt", "--clip-k", "2"]])
def test_options_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        import_pt.main([*arguments, "-o", "out"])
    assert ended.value.code == 2 and "error" in capsys.readouterr().err


# Files that are wrong.

def refusal(tmp_path, path, **options):
    with pytest.raises(torch_file.Refused) as refused:
        convert(tmp_path, path, **{"kv_heads": 1, **options})
    assert not (tmp_path / "out.safetensors").exists()
    return str(refused.value)


def one_layer(tmp_path, matrix, **view):
    return archive(tmp_path / "k.pt", document([(number(0), layer_entry("0", matrix.shape, **view))]),
                   {"0": matrix.astype("<f4").tobytes()})


@pytest.mark.parametrize("damage, words", [
    (lambda m: m * 1.1, "not a rotation"), (lambda m: m * np.nan, "not finite"), (lambda m: m[:16], "[16, 32]"),
    (lambda m: m[:8, :8], "[8, 8]"), (lambda m: m.ravel(), "[D, D]"), (lambda m: m[None, None], "[D, D]"),
    (lambda m: m[:0, :0], "[0, 0]")])
def test_what_is_no_rotation(tmp_path, rng, damage, words):
    assert words in refusal(tmp_path, one_layer(tmp_path, damage(rotation(rng))))


def test_kv_heads_are_needed(tmp_path, rng):
    assert "--kv-heads" in refusal(tmp_path, one_layer(tmp_path, rotation(rng)), kv_heads=None)


def test_files_that_do_not_belong_together(tmp_path, matrices):
    k = rotation_file(tmp_path / "k.pt", matrices)
    again = rotation_file(tmp_path / "again.pt", matrices, "ktk")
    short = rotation_file(tmp_path / "v.pt", matrices[:2], "sst")
    with pytest.raises(torch_file.Refused, match="both for K"):
        convert(tmp_path, k, again, kv_heads=1)
    with pytest.raises(torch_file.Refused, match="different layers"):
        convert(tmp_path, k, short, kv_heads=1)


def test_layers_of_different_shapes(tmp_path, rng):
    assert "different shapes" in refusal(tmp_path, rotation_file(tmp_path / "k.pt", [rotation(rng), rotation(rng, 64)]))


@pytest.mark.parametrize("value", [text("x"), mapping([]), mapping([(text("layers"), number(3))]),
                                   mapping([(text("layers"), mapping([]))]), b"N", b"]"])
def test_other_contents(tmp_path, value):
    assert "no rotation file" in refusal(tmp_path, archive(tmp_path / "k.pt", pickled(value)))


@pytest.mark.parametrize("key", [number(-1), number(2**40), text("seven"), b"N"])
def test_layer_ids(tmp_path, rng, key):
    matrix = rotation(rng)
    if key == b"N":
        key = text("-3")
    refusal(tmp_path, archive(tmp_path / "k.pt", document([(key, layer_entry("0", matrix.shape))]),
                              {"0": matrix.astype("<f4").tobytes()}))


# Files that are hostile.

def calls(module, name, *arguments):
    return named(module, name) + several(*arguments) + b"R"


def test_code_is_never_executed(tmp_path):
    trace = tmp_path / "executed"
    command = text(f"touch {trace}")
    stack_global = text("os") + text("system") + b"\x93" + several(command) + b"R"
    instance = b"(" + command + b"ios\nsystem\n"
    programs = [calls("os", "system", command), calls("posix", "system", command), stack_global, instance,
                calls("builtins", "exec", text("import os")), calls("builtins", "getattr", text("a"), text("b")),
                calls("torch", "load", text("x")), calls("torch._utils", "_rebuild_tensor", text("x")),
                named("collections", "OrderedDict.fromkeys") + b")R"]
    for program in programs:
        message = refusal(tmp_path, archive(tmp_path / "k.pt", pickled(program)))
        assert "not allowed" in message or "does not need" in message or "do not need" in message
    assert not trace.exists()


@pytest.mark.parametrize("program", [
    b"}}b", b")\x81", b"\x82\x01", b"(]o", b"\x97", b"\x96" + struct.pack("<Q", 1 << 60),
    b"\x8e" + struct.pack("<Q", 1),
    b"\x8d" + struct.pack("<Q", 1 << 60), b"\x8b" + struct.pack("<i", 1 << 30), b"B" + struct.pack("<I", 1 << 31),
    b"P1\n", b"I" + b"9" * 5000 + b"\n", b"R", b"u", b"0", b"h\x05", b"t", b"\x85", b"Q", b"s", b"e", b"(R", b"",
    text("torch") + b"))\x93", several(text("storage")) + b"Q", b")" + named("torch", "FloatStorage") + b"Q",
    named("torch", "FloatStorage") + b")R", named("torch._utils", "_rebuild_tensor_v2") + b")R",
    named("collections", "OrderedDict") + several(b"]") + b"R", b"N" + named("collections", "OrderedDict") + b"R",
    b"]" + number(1) + number(2) + b"s", b"](" + number(1) + b"u", b"}(" + number(1) + b"u", b"}]Ns", b"\xff",
    b"("])
def test_programs_that_make_no_sense(tmp_path, program):
    refusal(tmp_path, archive(tmp_path / "k.pt", pickled(program)))


def test_a_memo_index_costs_no_memory(tmp_path, matrices):
    pickle = pickled(number(1) + b"r" + struct.pack("<I", 2**32 - 1) + b"0" + b"N")
    assert "POP" in refusal(tmp_path, archive(tmp_path / "k.pt", pickle))


def doubled(times):
    """Nested tuples that are small in memory and exponentially large to print or hash."""
    return b")" + b"".join(b"q" + bytes([at]) + b"h" + bytes([at]) + b"\x86" for at in range(times))


@pytest.mark.parametrize("place", ["key", "layer id", "shape", "storage", "global"])
def test_nested_tuples_are_never_walked(tmp_path, place):
    deep = doubled(200)
    program = {"key": b"}" + deep + b"Ns", "layer id": mapping([(text("layers"), b"}" + deep + b"Ns")]),
               "shape": named("torch._utils", "_rebuild_tensor_v2")
               + several(storage("0", 1), number(0), deep, deep) + b"R",
               "storage": several(text("storage"), deep, deep, deep, deep) + b"Q",
               "global": deep + deep + b"\x93"}[place]
    refusal(tmp_path, archive(tmp_path / "k.pt", pickled(program), {"0": bytes(4)}))


@pytest.mark.parametrize("view", [
    {"shape": (1 << 30, 1 << 30), "strides": (0, 0)}, {"shape": (DIM, DIM), "strides": (DIM + 1, 1)},
    {"shape": (DIM, DIM), "offset": 1}, {"shape": (DIM, DIM), "offset": -1}, {"shape": (DIM, DIM), "strides": (-1, 1)},
    {"shape": (DIM, DIM), "strides": (1 << 39, 1)}, {"shape": (DIM, DIM), "strides": (1,)}, {"shape": (1,) * 9}])
def test_views_outside_their_storage(tmp_path, rng, view):
    entry = layer_entry("0", view.pop("shape"), elements=DIM * DIM, **view)
    refusal(tmp_path, archive(tmp_path / "k.pt", document([(number(0), entry)]),
                              {"0": rotation(rng).astype("<f4").tobytes()}))


@pytest.mark.parametrize("elements", [0, DIM * DIM - 1, DIM * DIM + 1, 1 << 40, 1 << 62, -1])
def test_storages_of_another_size(tmp_path, rng, elements):
    path = one_layer(tmp_path, rotation(rng), elements=elements)
    refusal(tmp_path, path)


def test_missing_storage(tmp_path):
    path = archive(tmp_path / "k.pt", document([(number(0), layer_entry("0", (DIM, DIM)))]))
    assert "'0'" in refusal(tmp_path, path)


def test_layers_that_share_memory(tmp_path, rng):
    """A few bytes a layer must not become a matrix a layer."""
    layers = [(number(at), layer_entry("0", (DIM, DIM))) for at in range(100)]
    path = archive(tmp_path / "k.pt", document(layers), {"0": rotation(rng).astype("<f4").tobytes()})
    assert "share memory" in refusal(tmp_path, path)


def test_more_layers_than_models_have(tmp_path, rng):
    layers = [(number(at), layer_entry("0", (DIM, DIM))) for at in range(513)]
    path = archive(tmp_path / "k.pt", document(layers), {"0": rotation(rng).astype("<f4").tobytes()})
    assert "513" in refusal(tmp_path, path)


def test_zip_bombs(tmp_path):
    """Compressed entries, and entries that claim more than the file has."""
    path = archive(tmp_path / "k.pt", pickled(b"N"), {"0": bytes(50 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20 and "compressed" in refusal(tmp_path, path)
    path = archive(tmp_path / "k.pt", pickled(b"N"), {"0": bytes(64)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24:entry + 28] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    assert "claim" in refusal(tmp_path, path)


def test_overlapping_entries(tmp_path):
    """Many names for the same bytes."""
    path = archive(tmp_path / "k.pt", pickled(b"N"), {"0": bytes(1 << 16)})
    data = path.read_bytes()
    entry, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    record = data[entry:end]
    many = data[:end] + record * 100
    counts = struct.pack("<HHI", 103, 103, end - data.index(b"PK\x01\x02") + 100 * len(record))
    path.write_bytes(many + data[end:end + 8] + counts + data[end + 16:])
    assert "claim" in refusal(tmp_path, path)


def test_a_pickle_without_end(tmp_path):
    path = archive(tmp_path / "k.pt", b"}" * ((1 << 20) + 1))
    assert "data.pkl" in refusal(tmp_path, path)


def test_every_truncation(tmp_path, rng):
    path = one_layer(tmp_path, rotation(rng, 16))
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        refusal(tmp_path, path)


def test_every_damaged_byte_of_the_pickle(tmp_path, rng):
    """Refused or harmless, never another exception: what is read is still a rotation."""
    path = one_layer(tmp_path, rotation(rng, 16))
    pickle = zipfile.ZipFile(path).read("rotation/data.pkl")
    raw = zipfile.ZipFile(path).read("rotation/data/0")
    refused = 0
    for at in range(len(pickle)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = pickle[:at] + bytes([pickle[at] ^ flip]) + pickle[at + 1:]
            try:
                convert(tmp_path, archive(tmp_path / "d.pt", damaged, {"0": raw}), kv_heads=1)
            except torch_file.Refused:
                refused += 1
    assert refused > len(pickle)


def test_damaged_data_and_strange_archives(tmp_path, rng):
    path = one_layer(tmp_path, rotation(rng))
    data = bytearray(path.read_bytes())
    data[data.index(b"rotation/data/0") + 100] ^= 1
    path.write_bytes(data)
    assert "CRC" in refusal(tmp_path, path)
    path = archive(tmp_path / "k.pt", pickled(b"N"), order=b"big")
    assert "little-endian" in refusal(tmp_path, path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("something", b"else")
    assert "data.pkl" in refusal(tmp_path, path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", pickled(b"N"))
        file.writestr("b/data.pkl", pickled(b"N"))
    path.write_bytes(buffer.getvalue())
    assert "found 2" in refusal(tmp_path, path)
