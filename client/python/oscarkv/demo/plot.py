"""One picture of what the demo found."""

from .calibration import LABELS
from .report import KL_MAX

_OURS = ("oscarkv", "oscarkv_k4")
_COLOURS = {"ours": "#1f77b4", "other": "#9aa5b1", "first": "#c44e52", "aim": "#2ca02c"}


def _quality_panel(axes, figures):
    """KL of both parts by method, on a logarithmic axis, with top-1 beside each."""
    table = {name: found for name, found in figures["quality"].items() if name != "bf16"}
    names = sorted(table, key=lambda name: -table[name]["kl_rest"])
    for row, name in enumerate(reversed(names)):
        found = table[name]
        colour = _COLOURS["ours"] if name in _OURS else _COLOURS["other"]
        axes.barh(row, found["kl_rest"], height=0.6, color=colour)
        axes.plot(found["kl_first64"], row, "D", color=_COLOURS["first"], markersize=5)
        right = max(found["kl_rest"], found["kl_first64"])
        axes.annotate(f"{found['kl_rest']:.4f},  top-1 {found['top1']:.1f} %", (right, row), xytext=(7, 0),
                      textcoords="offset points", va="center", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)])
    axes.set_xscale("log")
    values = [found[kind] for found in table.values() for kind in ("kl_rest", "kl_first64")]
    low = max(min(values), 1e-6)
    axes.set_xlim(low / 2, max(values) * 12)
    axes.axvline(KL_MAX, color=_COLOURS["aim"], linestyle="--", linewidth=1)
    axes.annotate(f"aim {KL_MAX}", (KL_MAX, len(names) - 0.45), color=_COLOURS["aim"], fontsize=9,
                  ha="center", va="bottom")
    axes.plot([], [], "D", color=_COLOURS["first"], markersize=5, label="first 64 tokens")
    axes.bar(0, 0, color=_COLOURS["other"], label="tokens after them")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xlabel("KL to the exact cache, nats per token (log scale)")
    axes.set_title(f"Text after a prefix held in pages, last {figures['recent_tokens']} tokens WIDE",
                   loc="left", fontsize=11, pad=16)


def _bars(axes, labels, values, texts, title, unit):
    colours = [_COLOURS["other"]] + [_COLOURS["ours"]] * (len(values) - 1)
    axes.bar(labels, values, width=0.6, color=colours)
    for at, (value, text) in enumerate(zip(values, texts)):
        axes.annotate(text, (at, value), xytext=(0, 3), textcoords="offset points", ha="center",
                      fontsize=9)
    axes.set_ylim(0, max(values) * 1.2)
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(axis="x", labelsize=9)


def draw(figures, path):
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.75, 1))
    quality, size, seconds = (figure.add_subplot(grid[at]) for at in
                              ((slice(None), 0), (0, 1), (1, 1)))
    _quality_panel(quality, figures)
    whole = figures["bytes_bf16"]
    sizes = [whole, figures["bytes_stored"], figures["bytes_stored_without_recent_window"]]
    _bars(size, ["BF16", "stored", "stored without\nrecent window"], [value / 1e6 for value in sizes],
          [f"{value / 1e6:.1f}" + ("" if value == whole else f"  ({whole / value:.1f}x less)")
           for value in sizes], f"Bytes of {figures['push']['tokens_pushed']} tokens", "MB")
    recompute, fetch = figures["ttft_recompute_s"], figures["ttft_fetch_s"]
    _bars(seconds, ["recompute", "fetch from oscarkv"], [recompute, fetch],
          [f"{recompute:.2f} s", f"{fetch:.2f} s  ({recompute / fetch:.1f}x sooner)"],
          f"First token, {figures['tokens_reused']} tokens reused", "seconds")
    for axes in (quality, size, seconds):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{figures['model']}: the KV cache of a shared prefix in 2 bits", x=0.01, ha="left",
                    fontsize=13, fontweight="bold")
    figure.savefig(path, dpi=150)
    plt.close(figure)
