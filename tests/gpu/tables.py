"""The Markdown table of `./run gpu-bench`, from the JSON of gpu_bench and of torch_peers.py.

    tables.py BENCH.json [TORCH.json ...]
"""

import json
import pathlib
import sys

# What each workload is to reach, and what the reference's Triton kernels took on an H100 (copy 2.97 TB/s): rotating K
# only, pages of 80 bytes a token slot instead of 72; attention's second figure is Triton over BF16.
_CODEC_AIMS = {"encode": 2.0, "decode_rotated": 2.5, "decode": 2.2}  # TB/s, from 65,536 tokens on
_CODEC_REFERENCES = {"encode/tokens:65536": "673", "decode_rotated/tokens:65536": "638", "decode/tokens:65536": "1465"}
_ATTEND_AIMS = {(1, 4096): 9, (1, 32768): 15, (1, 81920): 29, (1, 131072): 43, (8, 32768): 80, (32, 4096): 45,
                (32, 32768): 300}  # us
_ATTEND_REFERENCES = {(1, 4096): "19.6, 29.7", (1, 32768): "50.4, 90", (1, 81920): "97.3, 173", (1, 131072): "144, 255",
                      (8, 32768): "224, 425", (32, 4096): "118, 221", (32, 32768): "822, 1563"}
_WORKS = {"encode": "encode", "decode_rotated": "decode, no transform", "decode": "decode"}


def _shape(name):
    """"attend/requests:1/length:4096" -> ("attend", {"requests": 1, "length": 4096})."""
    work, *parts = name.split("/")
    return work, {key: int(value) for key, value in (part.split(":") for part in parts)}


def _words(work, shape):
    if work != "attend":
        return f"{_WORKS.get(work, work)}, {shape['tokens']:,} tokens"
    wide = f", {shape['wide']} of its pages WIDE" if shape.get("wide") else ""
    return f"attend, B = {shape['requests']}, L = {shape['length']:,}{wide}"


def _aim_and_reference(row, work, shape):
    """(aim, whether it is met or None, the reference's figure), as the table has them."""
    if work == "attend":
        key = (shape["requests"], shape["length"])
        if shape.get("wide") or key not in _ATTEND_AIMS:
            return "", None, ""
        return f"{_ATTEND_AIMS[key]} us", row["us"] <= _ATTEND_AIMS[key], _ATTEND_REFERENCES[key]
    reference = _CODEC_REFERENCES.get(row["name"], "")
    if work not in _CODEC_AIMS or shape["tokens"] < 65536:
        return "", None, reference
    return f"{_CODEC_AIMS[work]:.1f} TB/s", row["tb_per_s"] >= _CODEC_AIMS[work], reference


def _peer_of(row, peers):
    """What PyTorch does instead: of a mixture of pages as of the same tokens in 2 bits."""
    return peers.get(row["name"].split("/wide:")[0])


def markdown(bench, torch=None):
    """`torch` is None where there was no PyTorch; its columns are empty then."""
    peers = {row["name"]: row for row in torch["rows"]} if torch else {}
    matrix = torch["matrix_tflop_per_s"] if torch else None
    lines = [f"{bench['device']}: copy {bench['copy_tb_per_s']:.2f} TB/s, counting reads and writes"
             + (f"; bf16 product {matrix:.0f} TFLOP/s; PyTorch {torch['torch']}" if torch else "")
             + f". One layer of Qwen3-8B, pages of 64 tokens; medians of {bench['repeats']}. PyTorch's attention reads "
             "contiguous BF16 without a page table, its codec checks no checksums.", "",
             "| work | us | TB/s | of copy | floor, us | aim | | PyTorch, us | times | its best way | reference, us |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in bench["rows"]:
        work, shape = _shape(row["name"])
        aim, met, reference = _aim_and_reference(row, work, shape)
        floor = max(row["floor_us"], row["operations"] / matrix * 1e-6 if matrix else 0.0)
        peer = _peer_of(row, peers)
        cells = [_words(work, shape), f"{row['us']:.1f}", f"{row['tb_per_s']:.2f}", f"{100 * row['of_copy']:.0f} %",
                 f"{floor:.1f}", aim, {True: "met", False: "missed", None: ""}[met],
                 *([f"{peer['us']:.1f}", f"{peer['us'] / row['us']:.1f}x", peer["way"]] if peer else ["", "", ""]),
                 reference]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + transfers(bench.get("transfers", [])) + tier(bench.get("tier", []))


def transfers(rows):
    """A table of its own: all 36 layers between pinned host memory and a cache on the GPU, end to end."""
    if not rows:
        return ""
    lines = ["\n", "| 128K tokens of Qwen3-8B, 2 bits | ms | GB/s | of a pinned copy | first layer, ms |",
             "|---|---|---|---|---|"]
    for row in rows:
        first = f"{row['first_layer_ms']:.2f}" if "first_layer_ms" in row else ""
        lines.append(f"| {row['name']} | {row['ms']:.1f} | {row['gb_per_s']:.1f} | {100 * row['of_copy']:.0f} % | {first} |")
    return "\n".join(lines)


def tier(rows):
    """The server's GPU tier: pages of Qwen3-8B to and from its host tier, with their checksums."""
    if not rows:
        return ""
    lines = ["\n", "| GPU tier of the server | GB/s | of a pinned copy |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['gb_per_s']:.1f} | {100 * row['of_copy']:.0f} % |" for row in rows]
    return "\n".join(lines)


def merged(reports):
    """One of several parts of torch_peers.py's workloads, from one kind of machine; None of none."""
    machines = {(report["device"], report["torch"]) for report in reports}
    if len(machines) > 1:
        raise SystemExit(f"tables.py: PyTorch's figures are of several machines: {sorted(machines)}")
    return {**reports[0], "rows": [row for report in reports for row in report["rows"]]} if reports else None


if __name__ == "__main__":
    bench, *torch = (json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:])
    print(markdown(bench, merged(torch)))
