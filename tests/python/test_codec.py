"""The codec beside an implementation of FORMAT.md in numpy, byte for byte."""

import itertools
import pathlib
import re

import numpy as np
import pytest

import oscarkv
import page_format
from page_format import DTYPES, F32, Side, from_fp32, to_fp32

LAYERS, HEADS, TOKENS, SLOTS = 2, 2, 6, 16
SLOT_LIST = [3, 0, 11, 7, 8, 15]
BACKENDS = ["cpu", "reference"]
FORMATS = [(dims, dtype, bits, group, params)
           for dims, group in [((128, 128), 0), ((64, 48), 16), ((96, 32), 32), ((256, 64), 64), ((16, 80), 0)]
           for dtype in DTYPES for bits in [(2, 2), (4, 2), (4, 4)] for params in ("fp16", "fp32")]


def rows_of_all_kinds(rng, shape, dtype):
    """Gaussian rows, some with outliers, offsets or a tiny scale, constant ones and some that are not finite."""
    x = rng.standard_normal(shape).astype(F32)
    flat = x.reshape(-1, shape[-1])
    for i, row in enumerate(flat):
        kind = i % 16
        if kind == 1:
            row[rng.integers(len(row))] = 50
        elif kind == 2:
            row += 300
        elif kind == 3:
            row *= F32(1e-6)
        elif kind == 4:
            row[:] = rng.standard_normal()
        elif kind == 5:
            row[rng.integers(len(row))] = np.nan if i % 3 else -np.inf
        elif kind == 6:
            row[:] = rng.integers(-3, 4, len(row)) / 2
        elif kind == 7:
            row[:len(row) // 2] *= F32(3e4)
        elif kind == 8:
            row[:] = F32(0.002) + row * F32(1e-8)
        elif kind == 9:
            row[:] = 0
    return from_fp32(x, dtype)


def make(dims, dtype, bits, group, params, clips, backend, transforms="identity"):
    geometry = oscarkv.Geometry(layers=LAYERS, kv_heads=HEADS, k_head_dim=dims[0], v_head_dim=dims[1],
                                page_tokens=TOKENS, dtype=dtype)
    spec = oscarkv.CodecSpec(k_bits=bits[0], v_bits=bits[1], group=group, params=params)
    transform_set = getattr(oscarkv.TransformSet, transforms)(geometry, k_clip=clips[0], v_clip=clips[1])
    return oscarkv.PageCodec(geometry, spec, transform_set, backend=backend)


def caches(rng, dims, dtype, fill=rows_of_all_kinds):
    return [fill(rng, (LAYERS, SLOTS, HEADS, dim), dtype) for dim in dims]


def sides_of(bits, group, params, clips):
    return tuple(Side(b, group, params, c) for b, c in zip(bits, clips))


def assert_same_numbers(found, expected):
    """Bit for bit, but that any NaN equals any other."""
    a, b = to_fp32(found), to_fp32(expected)
    both_nan = np.isnan(a) & np.isnan(b)
    np.testing.assert_array_equal(np.where(both_nan, 0, a.view(np.uint32)), np.where(both_nan, 0, b.view(np.uint32)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dims,dtype,bits,group,params", FORMATS)
def test_packed_pages_are_those_of_the_text(dims, dtype, bits, group, params, backend):
    rng = np.random.default_rng(1)
    clips = (0.9, 0.0) if group != 16 else (0.85, 0.96)
    codec = make(dims, dtype, bits, group, params, clips, backend)
    k, v = caches(rng, dims, dtype)
    page, crcs = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST, "packed")
    sides = sides_of(bits, group, params, clips)
    expected, expected_crcs = page_format.encode_page(k[:, SLOT_LIST], v[:, SLOT_LIST], sides, "packed", dtype)
    assert page.tobytes() == expected
    assert crcs.tolist() == expected_crcs
    assert codec.report["rows"] == 2 * LAYERS * HEADS * TOKENS

    # And back, in the basis that they are stored in.
    k_out, v_out = np.zeros_like(k), np.zeros_like(v)
    codec.decode(page, crcs, oscarkv.PagedKv(k_out, v_out), SLOT_LIST, "packed", "transformed")
    shapes = [x[:, SLOT_LIST].shape for x in (k, v)]
    for found, back in zip((k_out, v_out), page_format.decode_page(expected, *shapes, sides)):
        assert_same_numbers(found[:, SLOT_LIST], from_fp32(back, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype,engine", list(itertools.product(DTYPES, DTYPES)))
def test_wide_pages_are_those_of_the_text(dtype, engine, backend):
    rng = np.random.default_rng(2)
    dims = (32, 48)
    codec = make(dims, dtype, (2, 2), 0, "fp16", (0, 0), backend)
    k, v = caches(rng, dims, engine, lambda r, shape, d: from_fp32(r.standard_normal(shape).astype(F32), d))
    page, crcs = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST, "wide")
    expected = page_format.encode_page(k[:, SLOT_LIST], v[:, SLOT_LIST], (None, None), "wide", dtype)
    assert (page.tobytes(), crcs.tolist()) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clips", [(0.5, 0.92), (0.999, 0.01), (1.0, -1.0)])
def test_every_clip_ratio(clips, backend):
    rng = np.random.default_rng(3)
    dims = (64, 112)
    codec = make(dims, "fp32", (2, 4), 0, "fp32", clips, backend)
    k, v = caches(rng, dims, "fp32")
    page, _ = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST)
    sides = sides_of((2, 4), 0, "fp32", clips)
    assert page.tobytes() == page_format.encode_page(k[:, SLOT_LIST], v[:, SLOT_LIST], sides, "packed", "fp32")[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype,bound", [("bf16", 2 ** -5), ("fp16", 2 ** -9), ("fp32", 2 ** -9)])
def test_transformed_pages_are_within_the_bounds_of_the_text(dtype, bound, backend):
    rng = np.random.default_rng(4)
    dims = (128, 64)
    codec = make(dims, dtype, (2, 2), 0, "fp16", (0.86, 0.86), backend, "hadamard")
    k, v = caches(rng, dims, dtype, lambda r, shape, d: from_fp32(r.standard_normal(shape).astype(F32), d))
    page, crcs = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST)

    def rotated(x):
        dim = x.shape[-1]
        i = np.arange(dim)
        bits = np.array([[bin(a & b).count("1") for b in i] for a in i])
        matrix = ((-1.0) ** bits / np.sqrt(dim)).astype(F32).astype(np.float64)
        return (to_fp32(x).astype(np.float64) @ matrix).astype(F32), matrix

    sides = sides_of((2, 2), 0, "fp16", (0.86, 0.86))
    (k_rotated, k_matrix), (v_rotated, v_matrix) = rotated(k[:, SLOT_LIST]), rotated(v[:, SLOT_LIST])
    expected, _ = page_format.encode_page(k_rotated, v_rotated, sides, "packed", "fp32")
    different = np.unpackbits(np.frombuffer(expected, np.uint8) ^ page).sum()
    assert different <= 1e-3 * 8 * len(expected)

    k_out, v_out = np.zeros_like(k), np.zeros_like(v)
    codec.decode(page, crcs, oscarkv.PagedKv(k_out, v_out), SLOT_LIST)
    shapes = [x[:, SLOT_LIST].shape for x in (k, v)]
    stored = page_format.decode_page(page.tobytes(), *shapes, sides)
    for found, y, matrix in zip((k_out, v_out), stored, (k_matrix, v_matrix)):
        exact = y.astype(np.float64) @ matrix.T
        error = np.abs(to_fp32(found[:, SLOT_LIST]) - exact).max(-1)
        assert (error <= bound * np.abs(exact).max(-1)).all()


def test_the_texts_own_example():
    text = (pathlib.Path(__file__).parents[2] / "kernels/codec/FORMAT.md").read_text()
    example = {name: bytes.fromhex(body) for name, body in re.findall(r"```hex (\S+)\n(.*?)```", text, re.S)}
    k, v = (np.frombuffer(example[name], np.uint16).reshape(1, 2, 1, 16) for name in ("k-input", "v-input"))
    sides = (Side(2, 16, "fp16", 0.9), Side(4, 16, "fp16", 0))
    page, crcs = page_format.encode_page(k, v, sides, "packed", "bf16")
    assert page == example["packed-page"]
    assert crcs == [int.from_bytes(example["packed-crc"], "big")]
    for found, name in zip(page_format.decode_page(page, k.shape, v.shape, sides), ("k-decoded", "v-decoded")):
        assert from_fp32(found, "bf16").tobytes() == example[name]
    wide, crcs = page_format.encode_page(k, v, sides, "wide", "bf16")
    assert wide == example["k-input"] + example["v-input"]
    assert crcs == [int.from_bytes(example["wide-crc"], "big")]


def test_damage_raises_and_writes_nothing():
    rng = np.random.default_rng(5)
    codec = make((64, 64), "bf16", (2, 2), 0, "fp16", (0, 0), "cpu")
    k, v = caches(rng, (64, 64), "bf16")
    page, crcs = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST)
    page[5] ^= 1
    k_before, v_before = k.copy(), v.copy()
    with pytest.raises(RuntimeError, match="layer 0, head 0"):
        codec.decode(page, crcs, oscarkv.PagedKv(k, v), SLOT_LIST)
    assert (k == k_before).all() and (v == v_before).all()
    with pytest.raises(ValueError, match="bytes must be .* found"):
        codec.decode(page[:-1], crcs, oscarkv.PagedKv(k, v), SLOT_LIST)


def test_views_with_strides_and_blocks_are_read_in_place():
    rng = np.random.default_rng(6)
    dims = (64, 64)
    codec = make(dims, "bf16", (2, 2), 0, "fp16", (0.9, 0.9), "cpu")
    k, v = caches(rng, dims, "bf16")
    expected, _ = codec.encode(oscarkv.PagedKv(k, v), SLOT_LIST)
    # [layers, blocks, heads, block tokens, K and V] in memory.
    both = np.concatenate([k, v], -1).reshape(LAYERS, SLOTS // 4, 4, HEADS, 128)
    memory = np.ascontiguousarray(both.transpose(0, 1, 3, 2, 4))
    view = memory.transpose(0, 1, 3, 2, 4)
    found, _ = codec.encode(oscarkv.PagedKv(view[..., :64], view[..., 64:]), SLOT_LIST)
    assert (found == expected).all()
