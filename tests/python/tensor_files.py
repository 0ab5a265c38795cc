"""Safetensors files and `oscarkv` runs for tests; the format is read and written here on its own, numpy aside."""

import json
import os
import struct
import subprocess

import numpy as np

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I64": "<i8"}


def to_bf16(values):
    """Bits, rounded to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def write(path, tensors, metadata=None):
    """`tensors`: {name: array, or (dtype, array of the stored type)}."""
    names = {np.dtype(text): name for name, text in _DTYPES.items() if name != "BF16"}
    header, parts, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, value in tensors.items():
        dtype, array = value if isinstance(value, tuple) else (names[value.dtype], value)
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


def read(path):
    """({name: array, BF16 as its bits}, metadata)."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[8 + length + begin:8 + length + end],
                                      _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def write_transform(path, forward, offset=None, clip=None, kv_heads=2, report=None):
    """`forward`: {"k": [layers, heads, dim, dim], "v": ...}; `offset` and `clip` likewise, default none."""
    tensors = {}
    for side, matrices in forward.items():
        matrices = np.asarray(matrices, np.float32)
        tensors[f"{side}.forward"] = matrices
        tensors[f"{side}.inverse"] = np.linalg.inv(matrices.astype(np.float64)).astype(np.float32)
        tensors[f"{side}.offset"] = np.asarray((offset or {}).get(side, np.zeros(matrices.shape[:3])), np.float32)
        tensors[f"{side}.clip_ratio"] = np.asarray((clip or {}).get(side, np.zeros(matrices.shape[:2])), np.float32)
    metadata = {"format": "oscarkv-transform-1", "kv_heads": str(kv_heads)}
    if report is not None:
        metadata["report"] = json.dumps(report)
    return write(path, tensors, metadata)


def run(build_dir, *arguments, **options):
    """`oscarkv ARGUMENTS`: the finished process, output as text."""
    return subprocess.run([build_dir / "bin" / "oscarkv", *map(str, arguments)], text=True, timeout=300,
                          **{"env": os.environ, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
