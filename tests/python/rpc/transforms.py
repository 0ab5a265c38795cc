"""Transform sets as files, good and bad."""

import hashlib

import numpy as np
from safetensors.numpy import save


def identity(shape, **replaced):
    """The bytes of a set whose transforms change nothing; `replaced` tensors by name, dots written as underscores."""
    tensors = {}
    for side, dim in (("k", shape.k_dim), ("v", shape.v_dim)):
        eye = np.broadcast_to(np.eye(dim, dtype=np.float32), (shape.layers, 1, dim, dim)).copy()
        tensors[f"{side}.forward"] = eye
        tensors[f"{side}.inverse"] = eye.copy()
        tensors[f"{side}.offset"] = np.zeros((shape.layers, 1, dim), np.float32)
        tensors[f"{side}.clip_ratio"] = np.ones((shape.layers, 1), np.float32)
    for name, value in replaced.items():
        tensors[name.replace("_", ".", 1)] = value
    return save(tensors, {"format": "oscarkv-transform-1", "kv_heads": str(shape.heads)})


def hash_of(file):
    return hashlib.sha256(file).digest()
