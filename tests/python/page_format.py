"""The page format in numpy, written from kernels/codec/FORMAT.md alone: what the binding is held to.

Rows are encoded without a transform (T = I, m = 0). Arrays of bf16 are uint16, as everywhere in the Python package.
"""

import dataclasses
import math

import numpy as np

F32 = np.float32
DTYPES = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}


def to_fp32(x):
    return (x.astype(np.uint32) << 16).view(F32) if x.dtype == np.uint16 else x.astype(F32)


def from_fp32(x, dtype):
    x = np.ascontiguousarray(x, F32)
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return x.astype(DTYPES[dtype])
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclasses.dataclass
class Side:
    """How the rows of K, or of V, are held."""
    bits: int = 2
    group: int = 0
    params: str = "fp16"
    clip: float = 0.0


def clip(row, ratio):
    dim = len(row)
    index = min(int(float(F32(ratio)) * dim), dim - 1)
    if ratio <= 0 or ratio >= 1 or index == dim - 1:
        return row
    threshold = np.sort(np.abs(row))[index]
    return np.clip(row, -threshold, threshold)


def quantise_group(values, side):
    """Codes, scale and zero of one group, as written."""
    most = F32(2 ** side.bits - 1)
    nothing = np.zeros(len(values), np.uint8)
    nan = (nothing, DTYPES[side.params](np.nan), DTYPES[side.params](0))
    with np.errstate(all="ignore"):
        low, high = values.min(), values.max()
        span = high - low
        scale = (span if span > F32(1e-8) else F32(1e-8)) / most
        zero = F32(0) - low / scale
        if side.params == "fp32":
            if not (math.isfinite(scale) and math.isfinite(zero)):
                return nan
        else:
            if not scale <= 65504:
                return nan
            s, z = F32(np.float16(scale)), F32(np.float16(zero))
            if s == 0 or abs(zero) > 65504 or abs((F32(0) - z) * s - low) > span * F32(0.5):
                middle = low + span * F32(0.5)
                return nan if abs(middle) > 65504 else (nothing, np.float16(middle), np.float16(-1))
        codes = np.trunc(np.clip((values / scale + zero) + F32(0.5), 0, most)).astype(np.uint8)
        return codes, DTYPES[side.params](scale), DTYPES[side.params](zero)


def pack(codes, bits):
    size = len(codes) * bits // 8
    packed = np.zeros(size, np.uint8)
    for i, code in enumerate(codes):
        packed[i % size] |= code << (i // size * bits)
    return packed.tobytes()


def encode_row(row, side):
    """The bytes of one fp32 row: codes, params."""
    dim = len(row)
    group = side.group or dim
    if not np.isfinite(row).all():
        scale = b"\x00\x7e" if side.params == "fp16" else b"\x00\x00\xc0\x7f"
        return bytes(dim * side.bits // 8), (scale + bytes(len(scale))) * (dim // group)
    row = clip(row, side.clip)
    groups = [quantise_group(row[i:i + group], side) for i in range(0, dim, group)]
    # A NaN's bytes are the positive quiet one's, whatever this machine makes.
    params = b"".join(np.array([abs(scale) if np.isnan(scale) else scale, zero]).tobytes()
                      for _, scale, zero in groups)
    return pack(np.concatenate([codes for codes, _, _ in groups]), side.bits), params


def decode_row(codes, params, dim, side):
    """One row in the basis it is stored in, fp32."""
    group = side.group or dim
    pairs = np.frombuffer(params, DTYPES[side.params]).astype(F32).reshape(-1, 2)
    packed = np.frombuffer(codes, np.uint8)
    i = np.arange(dim)
    code = (packed[i % len(packed)] >> (i // len(packed) * side.bits)) & (2 ** side.bits - 1)
    with np.errstate(all="ignore"):
        return (code.astype(F32) - pairs[i // group, 1]) * pairs[i // group, 0]


def encode_page(k, v, sides, encoding, dtype):
    """A page of the rows k [layers, tokens, heads, dim] and v, as an engine keeps them, and its blocks' checksums.

    `sides` is (K, V), or a list of such pairs, one a layer.
    """
    page, crcs = b"", []
    for layer in range(k.shape[0]):
        pair = sides[layer] if isinstance(sides, list) else sides
        for head in range(k.shape[2]):
            block = b""
            for rows, side in zip((k[layer, :, head], v[layer, :, head]), pair):
                if encoding == "wide":
                    same = rows.dtype == DTYPES[dtype]
                    block += (rows if same else from_fp32(to_fp32(rows), dtype)).tobytes()
                    continue
                encoded = [encode_row(row, side) for row in to_fp32(rows)]
                block += b"".join(codes for codes, _ in encoded) + b"".join(params for _, params in encoded)
            crcs.append(crc32c(block))
            page += block + bytes(-len(block) % 64)
    return page, crcs


def decode_page(page, shape_k, shape_v, sides):
    """K and V [layers, tokens, heads, dim] of a PACKED page, fp32, in the basis they are stored in."""
    k, v = np.zeros(shape_k, F32), np.zeros(shape_v, F32)
    at = 0
    for layer in range(shape_k[0]):
        for head in range(shape_k[2]):
            start = at
            for rows, side in zip((k[layer, :, head], v[layer, :, head]), sides):
                tokens, dim = rows.shape
                size = dim * side.bits // 8
                params = dim // (side.group or dim) * 2 * np.dtype(DTYPES[side.params]).itemsize
                for t in range(tokens):
                    codes = page[at + t * size:at + (t + 1) * size]
                    first = at + tokens * size + t * params
                    rows[t] = decode_row(codes, page[first:first + params], dim, side)
                at += tokens * (size + params)
            at += -(at - start) % 64
    return k, v
