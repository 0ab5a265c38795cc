"""What the demo found: figures for the JSON file, tables, the verdict, the metrics page."""

import urllib.request

from .calibration import LABELS
from .console import bytes_text

TOP1_MIN = 93.0  # percent
KL_MAX = 0.02    # nats, after the first 64 tokens


def sharing_figures(config, setting, recent, pushed, b, c, page_bytes, stored_bytes):
    """`page_bytes` maps an encoding to a page's bytes; `stored_bytes` is what the server says it
    holds."""
    token_bytes = config.layers * config.kv_heads * 2 * config.head_dim * 2  # K and V in bf16
    sinks = -(-setting.sink_tokens // setting.page_tokens)
    pages = pushed["pages"]
    return {
        "tokens_reused": b["take"]["tokens_reused"],
        "ttft_recompute_s": b["nothing"]["ttft_s"],
        "ttft_fetch_s": b["take"]["ttft_s"],
        "bytes_wire": b["take"]["bytes_wire"],
        "bytes_wire_push": pushed["bytes_wire"],
        "bytes_stored": stored_bytes,
        "bytes_stored_without_recent_window":
            sinks * page_bytes["wide"] + (pages - sinks) * page_bytes["packed"],
        "bytes_packed_page": page_bytes["packed"],
        "bytes_wide_page": page_bytes["wide"],
        "bytes_bf16": pushed["tokens_pushed"] * token_bytes,
        "bytes_bf16_reused": b["take"]["tokens_reused"] * token_bytes,
        "recent_tokens": recent, "sink_tokens": setting.sink_tokens,
        "page_tokens": setting.page_tokens,
        "push": _without_tokens(pushed),
        "worker_b": {reuse: _without_tokens(answer) for reuse, answer in b.items()},
        "worker_c": {reuse: _without_tokens(answer) for reuse, answer in c.items()},
    }


def _without_tokens(answer):
    return {name: value for name, value in answer.items() if name not in ("answer", "encodings")}


def print_sharing(console, figures):
    rows = []
    for worker, answers in (("B", figures["worker_b"]), ("C", figures["worker_c"])):
        for reuse, answer in answers.items():
            label = {"nothing": "recompute all", "take": "take every page found",
                     "recompute": "recompute the last R"}[reuse]
            divergence = answer["divergence"] or {}
            exact = reuse == "nothing"
            rows.append([f"{worker}: {label}", answer["tokens_reused"], f"{answer['ttft_s']:.2f} s",
                         f"{answers['nothing']['ttft_s'] - answer['ttft_s']:.2f} s",
                         bytes_text(answer["bytes_wire"]) if answer["bytes_wire"] else "-",
                         "exact" if exact or not divergence else f"{divergence['kl']:.4f}",
                         "" if exact or not divergence else f"{divergence['top1']:.0f} %"])
    console.table(["worker", "tokens reused", "first token", "saved", "fetched", "KL", "top-1"], rows)
    console.line()
    whole = figures["bytes_bf16"]
    rows = [["the same tokens in BF16", bytes_text(whole), "1.00x"]]
    for label, size in (
            ("stored: sinks and recent window WIDE", figures["bytes_stored"]),
            ("stored, were the recent window 2-bit too", figures["bytes_stored_without_recent_window"]),
            ("pushed over the wire by A", figures["bytes_wire_push"])):
        rows.append([label, bytes_text(size), f"{whole / max(size, 1):.2f}x less"])
    reused = figures["bytes_bf16_reused"]
    rows.append(["fetched over the wire by B", bytes_text(figures["bytes_wire"]),
                 f"{reused / max(figures['bytes_wire'], 1):.2f}x less"])
    packed, wide = figures["bytes_packed_page"], figures["bytes_wide_page"]
    rows.append([f"one page of {figures['page_tokens']} tokens in 2 bits", bytes_text(packed),
                 f"{wide / packed:.2f}x less"])
    console.table(["bytes", "", "than BF16"], rows)


def print_quality(console, recent, windows, table):
    window = f"the last {recent} tokens WIDE" if recent else "no recent window"
    console.line(f"    {window}, {windows} windows:")
    rows = [[LABELS[name], f"{found['ppl']:.2f}", f"{found['top1']:.1f} %",
             f"{found['kl_first64']:.4f}", f"{found['kl_rest']:.4f}"]
            for name, found in table.items()]
    console.table(["method", "perplexity", "top-1", "KL first 64", "KL rest"], rows)
    console.line()


def print_verdict(console, ours):
    """Says whether ours meets its aim; returns whether it does."""
    met = ours["top1"] >= TOP1_MIN and ours["kl_rest"] <= KL_MAX
    found = f"top-1 {ours['top1']:.1f} %, KL {ours['kl_rest']:.4f} after the first 64 tokens"
    aim = f"the aim is {TOP1_MIN:.0f} % and {KL_MAX}"
    if met:
        console.good(f"    oscarkv in 2 bits: {found} ({aim})")
    else:
        console.warn(f"    oscarkv in 2 bits MISSES its aim: {found} ({aim})")
    return met


def scrape(address):
    """The metrics page's text."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return reply.read().decode()


def print_metrics(console, page):
    """The samples of the store that are not nothing, without the buckets of histograms."""
    kept = [line for line in page.splitlines()
            if line.startswith("oscarkv_") and "_bucket{" not in line
            and not line.rstrip().endswith((" 0", " 0.0", " NaN"))]
    for line in kept:
        console.line(f"    {line}")
    return len(kept)


def print_decode_steps(console, name, steps):
    """Microseconds of decode steps whose attention reads 2-bit pages, beside BF16."""
    def row(found, *more):
        return [f"{found['requests']} x {found['tokens']:,}", f"{found['us_bf16']:.0f}",
                f"{found['us_int2']:.0f}", f"{found['us_bf16'] / found['us_int2']:.2f}x", *more,
                bytes_text(found["kv_bytes_bf16"]), bytes_text(found["kv_bytes_int2"])]

    console.line(f"    A decode step of {name}, in microseconds (sinks, recent window, new token WIDE):")
    console.table(["requests x tokens", "BF16", "2 bits", "faster", "no attention", "KL", "KV in BF16",
                   "here"],
                  [row(found, f"{found['us_without_attention']:.0f}", f"{found['kl']:.4f}")
                   for found in steps["model"]])
    console.line()
    console.line("    Attention's part of a step of Qwen3-8B (36 layers), in microseconds:")
    console.table(["requests x tokens", "BF16", "2 bits", "faster", "KV in BF16", "here"],
                  [row(found) for found in steps["qwen3_8b_attention"]])
