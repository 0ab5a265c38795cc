"""Step (a): transform sets from the model's own activations, by the product's `oscarkv calibrate`."""

import json
import pathlib
import subprocess

import oscarkv

from .processes import ProcessFailed

# What `oscarkv calibrate` is asked for; the figures' names are those of the JSON.
SETS = {
    "hadamard_int2": ["--method", "hadamard", "--no-offset"],
    "oscar_paper": ["--method", "oscar", "--per-layer", "--no-offset",
                    "--clip-k", "0.96", "--clip-v", "0.92"],
    "oscar_int2": ["--method", "oscar", "--per-layer", "--no-offset"],
    "oscarkv": [],
    "oscarkv_k4": ["--k-bits", "4"],
}
LABELS = {
    "bf16": "BF16", "naive_int2": "naive INT2", "hadamard_int2": "Hadamard INT2, clip fitted",
    "oscar_paper": "OSCAR as published", "oscar_int2": "OSCAR, clip fitted",
    "oscarkv": "oscarkv", "oscarkv_k4": "oscarkv, K in 4 bits",
}


def calibrate(build_dir, dump, folder, setting, recent, progress=None, names=tuple(SETS)):
    """Runs `oscarkv calibrate` once for each of the named sets. Returns {name: path of the transform
    set}."""
    program = pathlib.Path(build_dir) / "bin" / "oscarkv"
    if not program.exists():
        raise ProcessFailed(f"{program} is not there: build it, or name --build-dir")
    paths = {}
    for name in names:
        paths[name] = pathlib.Path(folder) / f"{name}.safetensors"
        command = [program, "calibrate", dump, "-o", paths[name], "--json",
                   "--sink-tokens", str(setting.sink_tokens), "--recent-tokens", str(recent), *SETS[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ProcessFailed(f"oscarkv calibrate failed:\n{done.stderr.strip()[-2000:]}")
        (pathlib.Path(folder) / f"{name}.json").write_text(done.stdout)
        if progress:
            progress(1)
    return paths


def methods(config, setting, paths):
    """{name: PageCodec, or None for a cache that is WIDE throughout}, in the order of the table."""
    from .quality import page_codec

    geometry = oscarkv.Geometry(config.layers, config.kv_heads, config.head_dim, config.head_dim,
                                setting.page_tokens)
    codecs = {"bf16": None,
              "naive_int2": page_codec(config, setting, oscarkv.TransformSet.identity(geometry))}
    for name, path in paths.items():
        k_bits = 4 if name == "oscarkv_k4" else 2
        codecs[name] = page_codec(config, setting, oscarkv.TransformSet.load(str(path)), k_bits)
    return codecs


def _report(folder, name):
    return json.loads((pathlib.Path(folder) / f"{name}.json").read_text())


def chosen(folder, name):
    """{"K": {method: number of layers}, "V": ...} of a set, the most frequent first."""
    layers = _report(folder, name)["layers"]
    sides = {}
    for side in ("k", "v"):
        methods = [layer[f"{side}_method"] for layer in layers]
        sides[side.upper()] = {method: methods.count(method)
                               for method in sorted(set(methods), key=methods.count, reverse=True)}
    return sides


def warnings(folder, name):
    """What the calibration of a set warned of."""
    return list(_report(folder, name).get("warnings", []))
