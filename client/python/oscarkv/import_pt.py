"""Makes a transform file of OSCAR's published rotations (`k_rotation_*.pt`, `v_rotation_*.pt`).

    python -m oscarkv.import_pt K.pt V.pt --kv-heads N -o OUT.safetensors

Nothing in the files is executed (see torch_file.py). A file holds {"objective": text, "layers": {id: {"rotation":
[D, D] or [KV heads, D, D], "eigenvalues": [D]}}}: objectives that start with qqt or ktk are for K, sst or vtv for V,
the data-free hadamard for both.
"""

import argparse
import json
import math
import os
import pathlib
import struct
import sys

import numpy as np

from . import torch_file
from .torch_file import Refused

LAYERS_MAX = 512
HEADS_MAX = 256


def read_rotations(path):
    """(objective, {layer id: fp64 [heads or 1, D, D]}, {layer id: eigenvalues or None}) of a rotation file.

    Raises Refused.
    """
    document = torch_file.load(path)
    if not isinstance(document, dict) or not isinstance(document.get("layers"), dict) or not document["layers"]:
        raise Refused("no rotation file: expected a dict with \"layers\"")
    if len(document["layers"]) > LAYERS_MAX:
        raise Refused(f"{len(document['layers'])} layers, at most {LAYERS_MAX} are accepted")
    objective = document.get("objective", "")
    if not isinstance(objective, str):
        raise Refused("the objective is no text")
    rotations, spectra, elements = {}, {}, 0
    for key, layer in document["layers"].items():
        number = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 7 else key
        torch_file.bounded(number, "a layer id", 10**6)
        rotation = layer.get("rotation") if isinstance(layer, dict) else None
        if not isinstance(rotation, np.ndarray) or rotation.ndim not in (2, 3):
            raise Refused(f"layer {number}: \"rotation\" must be a tensor [D, D] or [KV heads, D, D]")
        elements += rotation.size
        if elements > os.path.getsize(path) // 2:
            raise Refused("the rotations are larger than the file: their layers share memory")
        matrices = np.array(rotation if rotation.ndim == 3 else rotation[None], np.float64)
        heads, rows, dim = matrices.shape
        if rows != dim or dim % 16 or not 16 <= dim <= 256 or not 1 <= heads <= HEADS_MAX:
            raise Refused(f"layer {number}: rotation {list(rotation.shape)}; head dims are multiples of 16 up to 256")
        if not np.isfinite(matrices).all():
            raise Refused(f"layer {number}: the rotation is not finite")
        if number in rotations:
            raise Refused(f"layer {number} comes twice")
        rotations[number] = matrices
        values = layer.get("eigenvalues")
        known = isinstance(values, np.ndarray) and values.size == dim and np.isfinite(values).all()
        spectra[number] = np.sort(values.astype(np.float64).ravel())[::-1].tolist() if known else None
    shapes = {matrices.shape for matrices in rotations.values()}
    if len(shapes) > 1:
        raise Refused(f"layers of different shapes: {sorted(shapes)}")
    return objective, rotations, spectra


def _one_word(objective):
    """Methods are separated by spaces in the file, and end up on terminals."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-+.") else "_" for c in objective[:64]) or "imported"


def inverse_of(matrix, where):
    """The transpose of a rotation; of one that was rounded (to bf16, say) the exact inverse."""
    error = np.abs(matrix @ matrix.T - np.eye(len(matrix))).max()
    if error > 5e-3:
        raise Refused(f"{where}: not a rotation, max |R R' - I| is {error:.2g}")
    return matrix.T if error < 1e-5 else np.linalg.inv(matrix)


def hadamard(dim):
    if dim & (dim - 1):
        raise Refused(f"no Hadamard matrix of size {dim} for the side without a file: give both files")
    signs = [[(i & j).bit_count() & 1 for j in range(dim)] for i in range(dim)]
    return (1.0 - 2.0 * np.array(signs)) / math.sqrt(dim)


def side_of(objective):
    """"k" or "v", None when the objective serves either."""
    return {"qqt": "k", "ktk": "k", "sst": "v", "vtv": "v"}.get(objective.split("_")[0])


def assign_sides(files):
    """{"k": (path, objective, rotations, spectra), "v": ...} of one or two files; a side may be None."""
    sides = {"k": None, "v": None}
    loose = []
    for file in files:
        side = side_of(file[1])
        if side is None:
            loose.append(file)
        elif sides[side] is not None:
            raise Refused(f"{sides[side][0]} and {file[0]} are both for {side.upper()}")
        else:
            sides[side] = file
    if len(files) == 1 and loose:  # data-free rotations serve both sides
        return {"k": loose[0], "v": loose[0]}
    for file in loose:
        sides[min(side for side, taken in sides.items() if taken is None)] = file
    return sides


def tensors_of(sides, kv_heads, clips):
    """(tensors {name: fp32 array}, methods {side: text}, report) of a transform file."""
    known = [file for file in sides.values() if file]
    ids = sorted(known[0][2])
    if any(sorted(file[2]) != ids for file in known):
        raise Refused("the files are of different layers")
    heads = {matrices.shape[0] for file in known for matrices in file[2].values()} - {1}
    if len(heads | ({kv_heads} if kv_heads else set())) > 1:
        raise Refused(f"rotations for {sorted(heads)} KV heads, --kv-heads is {kv_heads}")
    if not heads and not kv_heads:
        raise Refused("a rotation a layer does not say how many KV heads the model has: give --kv-heads")
    dim = next(iter(known[0][2].values())).shape[-1]
    tensors, methods, layers = {}, {}, [{} for _ in ids]
    for side, file in sides.items():
        if file:
            forward = np.stack([file[2][number] for number in ids])
            inverse = np.stack([[inverse_of(matrix, f"{file[0]}, layer {number}") for matrix in file[2][number]]
                                for number in ids])
            methods[side] = _one_word(file[1])
        else:
            forward = np.broadcast_to(hadamard(dim), (len(ids), 1, dim, dim))
            inverse, methods[side] = forward, "hadamard"
        shape = forward.shape
        tensors |= {f"{side}.forward": forward, f"{side}.inverse": inverse, f"{side}.offset": np.zeros(shape[:3]),
                    f"{side}.clip_ratio": np.full(shape[:2], clips[side])}
        for layer, number in zip(layers, ids):
            layer[f"{side}_method"] = methods[side]
            if file and file[3][number]:
                layer["q_spectrum" if side == "k" else "v_spectrum"] = file[3][number]
    names = " and ".join(dict.fromkeys(pathlib.Path(file[0]).name for file in known))
    notes = [f"imported from {names}; clip ratios {clips['k']:g} of K and {clips['v']:g} of V"]
    if ids != list(range(len(ids))):
        notes.append(f"layers 0..{len(ids) - 1} are the model's {', '.join(map(str, ids))}")
    report = {"method": "imported", "notes": notes, "layers": layers}
    metadata = {"format": "oscarkv-transform-1", "kv_heads": str(kv_heads or heads.pop()), "report": json.dumps(report),
                **{f"{side}_methods": " ".join([method] * len(ids)) for side, method in methods.items()}}
    return {name: np.asarray(array, "<f4") for name, array in tensors.items()}, metadata


def write_safetensors(path, tensors, metadata):
    header, offset = {"__metadata__": metadata}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = f"{path}.partial.{os.getpid()}"
    try:
        with open(partial, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in tensors.values():
                file.write(np.ascontiguousarray(array).tobytes())
        os.replace(partial, path)
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)


def convert(paths, output, kv_heads=None, k_clip=0.96, v_clip=0.92):
    """Writes the transform file and returns its notes. Raises Refused or OSError."""
    files = []
    for path in paths:
        try:
            files.append((path, *read_rotations(path)))
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
    tensors, metadata = tensors_of(assign_sides(files), kv_heads, {"k": k_clip, "v": v_clip})
    write_safetensors(output, tensors, metadata)
    return json.loads(metadata["report"])["notes"]


def main(arguments=None):
    """The exit status; 2 when what is wrong has been said."""
    parser = argparse.ArgumentParser(prog="python -m oscarkv.import_pt", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="ROTATION.pt", help="one or two; the objective says for which side")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.safetensors")
    parser.add_argument("--kv-heads", type=int, help="KV heads of the model, where the files do not say")
    for side, published in (("k", 0.96), ("v", 0.92)):
        parser.add_argument(f"--clip-{side}", type=float, default=published,
                            help=f"clip ratio of {side.upper()}, 0: none (%(default)s, as published)")
    options = parser.parse_args(arguments)
    if len(options.files) > 2:
        parser.error("at most two files: K's and V's")
    if options.kv_heads is not None and not 1 <= options.kv_heads <= HEADS_MAX:
        parser.error(f"--kv-heads must be 1 to {HEADS_MAX}")
    if not all(0 <= clip <= 1 for clip in (options.clip_k, options.clip_v)):
        parser.error("clip ratios lie between 0 and 1")
    try:
        for note in convert(options.files, options.output, options.kv_heads, options.clip_k, options.clip_v):
            print(note)
    except (Refused, OSError) as error:
        print(f"import_pt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
