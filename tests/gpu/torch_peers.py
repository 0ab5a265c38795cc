"""What PyTorch offers for the workloads of gpu_bench, under the same names and timed the same way.

    torch_peers.py [--filter EXPRESSION] [--json FILE] [--no-compile]

Each workload is done in every way PyTorch has for it, and the fastest counts. What each is given is at least as easy
as what gpu_bench does: rows lie contiguous where an engine's would be scattered (but decoding does scatter), nothing has
a checksum, attention's K and V are contiguous BF16 tensors without a page table.
"""

import argparse
import functools
import json
import math
import pathlib
import re
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, QUERY_HEADS, DIM, PAGE_TOKENS = 8, 32, 128, 64  # of Qwen3-8B, one layer
CLIP_RATIO = 0.9
REPEATS, LOOK_REPEATS, WARM_UPS = 61, 5, 2
ROTATED_BYTES = 600e6  # as gpu_bench: so many that no call finds its own in the cache
CODEC_TOKENS = (8192, 65536, 262144)
ATTEND_SHAPES = (*((1, length) for length in (4096, 8192, 32768, 65536, 81920, 131072, 262144)),
                 (8, 32768), (32, 4096), (32, 32768))


def time_us(calls, repeats=REPEATS):
    """Microseconds of one call: [median, a tenth took less, a tenth took more], from replays of a CUDA graph of all."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(WARM_UPS):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / len(calls))
    times.sort()
    return [times[repeats // 2], times[repeats // 10], times[-1 - repeats // 10]]


def rotation(call_bytes):
    """(calls in a graph, copies of the memory they work on), as gpu_bench has it."""
    copies = math.ceil(ROTATED_BYTES / call_bytes)
    return min(max(copies, 4), 40), min(copies, 40)


# What is timed. Rows are [tokens, heads, dim] in bf16, transforms [heads, dim, dim]; a row's codes are packed as
# FORMAT.md has them, four to a byte, dims 0, 32, 64 and 96 in the first.

def encode_rows(rows, transform):
    """Transform, clip by the exact order statistic, quantise to 2 bits, pack: codes and (scale, zero) in fp16."""
    y = torch.bmm(rows.transpose(0, 1), transform).float()  # [heads, tokens, dim]
    at = int(CLIP_RATIO * DIM)
    limit = y.abs().sort(-1).values[..., at:at + 1]  # topk and kthvalue take longer
    y = torch.minimum(torch.maximum(y, -limit), limit)
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    scale = (high - low).clamp_min(1e-8) / 3
    zero = 0 - low / scale
    codes = (y / scale + zero + 0.5).clamp(0, 3).to(torch.uint8).unflatten(-1, (4, DIM // 4))
    packed = codes[..., 0, :] | codes[..., 1, :] << 2 | codes[..., 2, :] << 4 | codes[..., 3, :] << 6
    return packed, torch.cat([scale, zero], -1).half()


def decode_rows(codes, params, inverse, offset, cache, slots):
    """Dequantise, transform back (unless `inverse` is None), scatter into cache [slots, heads, dim]."""
    wide = torch.stack([codes >> shift & 3 for shift in (0, 2, 4, 6)], -2).flatten(-2)
    scale, zero = params.float().unbind(-1)
    y = (wide.float() - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    y = y.to(torch.bfloat16)
    if inverse is not None:
        y = torch.baddbmm(offset, y, inverse)
    cache.index_copy_(0, slots, y.transpose(0, 1))


def codec_memory(tokens):
    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    pages = torch.randperm(tokens // PAGE_TOKENS, device="cuda")
    slots = (pages[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device="cuda")).flatten()
    sides = []
    for _ in "kv":
        basis = torch.linalg.qr(torch.randn(HEADS, DIM, DIM, device="cuda"))[0].to(torch.bfloat16)
        rows = random(tokens, HEADS, DIM)
        codes, params = encode_rows(rows, basis)
        sides.append({"rows": rows, "transform": basis, "inverse": basis.transpose(1, 2).contiguous(),
                      "offset": random(HEADS, 1, DIM), "codes": codes, "params": params, "slots": slots})
    return sides


def codec_ways(work, compiled):
    """{words for it: a function of a side's memory} for "encode", "decode" or "decode_rotated"."""
    def encode(function, side):
        return function(side["rows"], side["transform"])

    def decode(function, side):
        inverse = side["inverse"] if work == "decode" else None
        return function(side["codes"], side["params"], inverse, side["offset"], side["rows"], side["slots"])

    call, function = (encode, encode_rows) if work == "encode" else (decode, decode_rows)
    ways = {"eager": functools.partial(call, function)}
    if compiled:
        ways["compiled"] = functools.partial(call, compile_once(function))
    return ways


@functools.cache
def compile_once(function):
    return torch.compile(function, dynamic=True)  # for all sizes


def attend_ways():
    """{words for it: a function of q [requests, query heads, 1, dim], k and v [requests, heads, length, dim]}."""
    def grouped(q, k, v):
        # Query heads that share a KV head as rows of one: K and V are read once.
        q = q.unflatten(1, (HEADS, QUERY_HEADS // HEADS)).squeeze(3)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def plain(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def on(backend, function, *tensors):
        with sdpa_kernel(backend):
            return function(*tensors)

    # The others materialise the logits, or take one query head at a time.
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    return {f"SDPA {name}, {words}": functools.partial(on, backend, function)
            for name, backend in backends.items()
            for words, function in (("enable_gqa", plain), ("grouped", grouped))}


def best(ways, memory, calls):
    """The fastest way, and what a short look at each of them found: microseconds, or why it does not work."""
    def all_calls(words):
        return [functools.partial(ways[words], *memory[i % len(memory)]) for i in range(calls)]

    tried = {}
    for words in ways:
        start = time.monotonic()
        try:
            tried[words] = time_us(all_calls(words), LOOK_REPEATS)[0]
        except RuntimeError as error:  # a backend that does not take this shape
            tried[words] = str(error).splitlines()[0]
            torch.cuda.synchronize()
        print(f"    {words}: {tried[words]} us, tried for {time.monotonic() - start:.1f} s", file=sys.stderr)
    done = {words: found for words, found in tried.items() if not isinstance(found, str)}
    if not done:
        raise SystemExit(f"torch_peers: no way worked: {tried}")
    fastest = min(done, key=done.get)
    median, low, high = time_us(all_calls(fastest))
    return {"us": median, "us_low": low, "us_high": high, "way": fastest, "tried": tried}


def measure_codec(work, tokens, compiled):
    calls, copies = rotation(tokens * HEADS * 2 * (DIM * 2 + 36))
    memory = [codec_memory(tokens) for _ in range(copies)]

    def both(function, k, v):
        return function(k), function(v)

    ways = {words: functools.partial(both, function) for words, function in codec_ways(work, compiled).items()}
    return best(ways, memory, calls)


def measure_attend(requests, length):
    calls, copies = rotation(requests * length * HEADS * 2 * DIM * 2)
    memory = [(torch.randn(requests, QUERY_HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16),
               *(torch.randn(requests, HEADS, length, DIM, device="cuda", dtype=torch.bfloat16) for _ in "kv"))
              for _ in range(copies)]
    return best(attend_ways(), memory, calls)


def matrix_rate():
    """TFLOP/s of a large bf16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    return 2 * 8192 ** 3 / time_us([lambda: torch.mm(a, b)])[0] * 1e-6


def workloads(compiled):
    """{name: a function that measures it}, names as in gpu_bench."""
    works = {f"{work}/tokens:{tokens}": functools.partial(measure_codec, work, tokens, compiled)
             for tokens in CODEC_TOKENS for work in ("encode", "decode_rotated", "decode")}
    works |= {f"attend/requests:{requests}/length:{length}": functools.partial(measure_attend, requests, length)
              for requests, length in ATTEND_SHAPES}
    return works


def main():
    parser = argparse.ArgumentParser(prog="torch_peers.py", description="Times PyTorch on gpu_bench's workloads.")
    parser.add_argument("--filter", default=".", help="only workloads in whose names this expression is found")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes its time")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    report = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "repeats": REPEATS,
              "matrix_tflop_per_s": matrix_rate(), "rows": []}
    print(f"{report['device']}, PyTorch {report['torch']}; bf16 product "
          f"{report['matrix_tflop_per_s']:.0f} TFLOP/s")
    for name, measure in workloads(not arguments.no_compile).items():
        if not re.search(arguments.filter, name):
            continue
        row = {"name": name, **measure()}
        torch.cuda.empty_cache()
        report["rows"].append(row)
        print(f"{name:40} {row['us']:9.1f}  {row['way']}", flush=True)
        if arguments.json:  # after each: what was measured stays if a later one ends the process
            pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
