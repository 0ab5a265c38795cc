"""Dumps Q, K and V of calibration text, one safetensors file a layer, as `oscarkv calibrate` reads
them: `layer_000.safetensors` with q [tokens, heads, dim], k and v [tokens, kv_heads, dim] in bf16, and
seq_lens [sequences] in int64."""

import json
import pathlib

import numpy as np

from .paged_cache import BLOCK_TOKENS, Sequence, to_bf16

_TYPES = {np.dtype(np.uint16): "BF16", np.dtype(np.int64): "I64"}


class SafetensorsFile:
    """A file of named arrays of known shapes, mapped for writing. uint16 stands for bf16."""

    def __init__(self, path, shapes):
        header, offset = {}, 0
        for name, (dtype, shape) in shapes.items():
            dtype = np.dtype(dtype)
            size = dtype.itemsize * int(np.prod(shape))
            header[name] = {"dtype": _TYPES[dtype], "shape": list(shape),
                            "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        self.arrays = {
            name: np.memmap(path, dtype, "r+", 8 + len(text) + header[name]["data_offsets"][0], shape)
            for name, (dtype, shape) in shapes.items()}


def dump_qkv(model, sequences, folder, progress=None):
    """Runs each sequence of tokens on its own and writes what attention sees, after RoPE."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, total = model.config, sum(map(len, sequences))
    shapes = {"q": (np.uint16, (total, config.heads, config.head_dim)),
              "k": (np.uint16, (total, config.kv_heads, config.head_dim)),
              "v": (np.uint16, (total, config.kv_heads, config.head_dim)),
              "seq_lens": (np.int64, (len(sequences),))}
    layers = [SafetensorsFile(folder / f"layer_{layer:03d}.safetensors", shapes).arrays
              for layer in range(config.layers)]
    for arrays in layers:
        arrays["seq_lens"][:] = [len(tokens) for tokens in sequences]
    cache = model.cache(-(-max(map(len, sequences)) // BLOCK_TOKENS), "fp32")
    first = 0
    for tokens in sequences:

        def capture(layer, position, q, k, v):
            rows = slice(first + position, first + position + len(q))
            for name, values in (("q", q), ("k", k), ("v", v)):
                layers[layer][name][rows] = to_bf16(values)

        sequence = Sequence(cache)
        model.prefill(tokens, sequence, capture, progress)
        sequence.free()
        first += len(tokens)
