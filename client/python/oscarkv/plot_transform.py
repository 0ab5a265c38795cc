"""Draws what is in a transform file: how good each layer is, beside naive INT2, and what was chosen.

    python -m oscarkv.plot_transform FILE.safetensors OUT.png
"""

import argparse
import json
import pathlib
import struct
import sys

import numpy as np

_COLOURS = {"k": "#1f77b4", "v": "#dd8452", "both": "#2ca02c", "naive": "#9aa5b1"}
_HEADER_BYTES_MAX = 100_000_000


class NotATransformFile(Exception):
    pass


def read(path):
    """(report, {"k": clip ratios [layers, heads], "v": ...}, {"k": [layers, heads, dim, dim], "v": ...}, metadata)."""
    data = pathlib.Path(path).read_bytes()
    try:
        length, = struct.unpack_from("<Q", data)
        if length > min(_HEADER_BYTES_MAX, len(data) - 8):
            raise ValueError("the header is longer than the file")
        header = json.loads(data[8:8 + length])
        metadata = header["__metadata__"]
        if metadata["format"] != "oscarkv-transform-1":
            raise ValueError(f"the format is {metadata['format']}")
        arrays = {}
        for name in ("k.clip_ratio", "v.clip_ratio", "k.forward", "v.forward"):
            begin, end = header[name]["data_offsets"]
            values = np.frombuffer(data[8 + length + begin:8 + length + end], "<f4")
            arrays[name] = values.reshape(header[name]["shape"])
        # JSON has no infinity: null stands for an error beyond all bounds, which a plot leaves out.
        report = json.loads(metadata.get("report", "{}"), object_hook=lambda found: {
            name: float("nan") if value is None else value for name, value in found.items()})
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise NotATransformFile(f"{path} is no transform file: {error}") from None
    return (report, {side: arrays[f"{side}.clip_ratio"] for side in "kv"},
            {side: arrays[f"{side}.forward"] for side in "kv"}, metadata)


def _medians(layers, side):
    """{method: median error over layers} in the order of the report, naive first."""
    errors = {}
    for layer in layers:
        for score in layer[f"{side}_scores"]:
            errors.setdefault(score["method"], []).append(score["error"])
    return {method: float(np.nanmedian(found)) if np.isfinite(found).any() else float("nan") for method, found in errors.items()}


def _layer_panel(axes, layers):
    numbers = range(len(layers))
    axes.plot(numbers, [layer["naive_error"] for layer in layers], "o-", color=_COLOURS["naive"], markersize=4,
              label="naive INT2, K and V")
    axes.plot(numbers, [layer["error"] for layer in layers], "o-", color=_COLOURS["both"], markersize=4,
              label="this set, K and V")
    for side in "kv":
        scores = [{score["method"]: score["error"] for score in layer[f"{side}_scores"]} for layer in layers]
        chosen = [found.get(layer[f"{side}_method"], np.nan) for found, layer in zip(scores, layers)]
        axes.plot(numbers, chosen, "--", color=_COLOURS[side], linewidth=1, label=f"only {side.upper()}")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.2)  # room for the legend
    axes.set_title("Error of attention's output on held-back tokens, relative", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")


def _method_panel(axes, layers):
    row, labels = 0, []
    for side in "vk":
        for method, error in reversed(_medians(layers, side).items()):
            times = sum(layer[f"{side}_method"] == method for layer in layers)
            axes.barh(row, error, height=0.7, color=_COLOURS["naive" if method == "naive" else side],
                      alpha=1 if times or method == "naive" else 0.45)
            axes.annotate(f"{error:.4f}" + (f"  chosen in {times}" if times else ""), (error, row), xytext=(5, 0),
                          textcoords="offset points", va="center", fontsize=8)
            labels.append(f"{side.upper()}  {method}")
            row += 1
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 8)
    axes.set_title("Every method, median over layers, one side at a time", loc="left", fontsize=11)


def _clip_panel(axes, clips):
    for side, shift in (("k", -0.12), ("v", 0.12)):
        for layer, ratios in enumerate(clips[side]):
            ratios = np.where((ratios > 0) & (ratios < 1), ratios, 1)
            axes.plot(np.full(len(ratios), layer + shift), ratios, "o", color=_COLOURS[side], markersize=4, alpha=0.8)
        axes.plot([], [], "o", color=_COLOURS[side], label=f"{side.upper()}, each head")
    axes.set_title("Clip ratio (1: none)", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _condition_panel(axes, forward):
    for side in "kv":
        values = np.linalg.svd(forward[side].astype(np.float64), compute_uv=False)
        axes.plot((values[..., 0] / values[..., -1]).max(-1), "o-", color=_COLOURS[side], markersize=4,
                  label=side.upper())
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.1, 2))
    axes.set_title("Condition number, greatest over heads", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def draw(path, output):
    """Writes a PNG. Raises NotATransformFile or OSError."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report, clips, forward, metadata = read(path)
    layers = report.get("layers", [])
    scored = bool(layers) and all("k_scores" in layer and "v_scores" in layer for layer in layers)
    figure = plt.figure(figsize=(12.5, 8 if scored else 4), layout="constrained")
    grid = figure.subplots(2 if scored else 1, 2, squeeze=False)
    if scored:
        _layer_panel(grid[0, 0], layers)
        _method_panel(grid[0, 1], layers)
    _clip_panel(grid[-1, 0], clips)
    _condition_panel(grid[-1, 1], forward)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (grid[0, 0], grid[-1, 0], grid[-1, 1]):
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
    name = report.get("model") or pathlib.Path(path).name
    figure.suptitle(f"{name}: {len(forward['k'])} layers, {metadata['kv_heads']} KV heads", x=0.01, ha="left",
                    fontsize=13, fontweight="bold")
    figure.savefig(output, dpi=130, format="png")
    plt.close(figure)


def main(arguments=None):
    """The exit status; 2 when what is wrong has been said."""
    parser = argparse.ArgumentParser(prog="python -m oscarkv.plot_transform", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", metavar="FILE.safetensors")
    parser.add_argument("output", metavar="OUT.png")
    options = parser.parse_args(arguments)
    try:
        draw(options.file, options.output)
    except (NotATransformFile, OSError) as error:
        print(f"plot_transform: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
