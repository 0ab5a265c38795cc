"""`./run bench trace FILE`: what the store's eviction policies hit on a trace, beside the offline optimum.

    trace_report.py FILE --gib 16,32,64,128,256 --model qwen3-8b [--json OUT] [--page-tokens 64] [--disk-gib 256] [--ladder] [--patterns]

Every figure is the percentage of the trace's blocks that a request finds through an unbroken run of stored ones. The server's
own store and policies are replayed; the constants of the learnt policy were chosen on the first half of one trace.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import tables
import trace_patterns

BLOCK_TOKENS = 512
# Values of K and V of one token: layers x KV heads x (head dims of K and V).
MODELS = {"qwen3-8b": 36 * 8 * 256, "qwen3-4b": 36 * 8 * 256, "qwen3-32b": 64 * 8 * 256, "llama3-8b": 32 * 8 * 256}
BITS = {"BF16": 16.0, "FP8": 8.0, "2.25 bits": 2.25}
# name, what the program is asked for
POLICIES = [("LRU", {"policy": "lru"}), ("learnt", {"policy": "learnt"})]
HINTED = [("learnt, perfect hints", {"policy": "learnt", "hints": True}),
          ("learnt, 10 % wrong hints", {"policy": "learnt", "hints": True, "wrong_hints": 0.1})]
# Every page is pushed WIDE (BF16); what becomes of it.
LADDER = [("pushed WIDE, kept WIDE", "kept"), ("pushed WIDE, until_pressure", "until_pressure"), ("pushed WIDE, tail", "tail"),
          ("pushed WIDE, never", "never")]
# What is written to a disk behind memory (disk.admit).
DISK = [("LRU, admit all", "lru", "all"), ("LRU, admit worth", "lru", "worth"), ("learnt, admit all", "learnt", "all"),
        ("learnt, admit worth", "learnt", "worth"), ("learnt, admit fetched", "learnt", "fetched")]
OPTIMUM = ("offline optimum", {"policy": "optimum"})


def pages_of(gib, values, bits, page_tokens):
    """Whole pages that fit."""
    return int(gib * 2**30 / (values * bits / 8 * page_tokens))


def run_jobs(program, file, jobs):
    """The jobs with their results, two processes at a time."""
    def run(job):
        done = subprocess.run([program, file], input=json.dumps([job]), stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"run bench: {program.name} failed")
        return json.loads(done.stdout)[0]
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(run, jobs))


def trace_jobs(gibs, values, page_tokens):
    """(label, capacity) for each job, and the job."""
    jobs = []
    for form, bits in BITS.items():
        ours = form == "2.25 bits"
        rows = [*POLICIES, *(HINTED if ours else []), OPTIMUM]
        for name, ask in rows:
            tokens = BLOCK_TOKENS if name == OPTIMUM[0] else page_tokens
            for gib in gibs:
                pages = pages_of(gib, values, bits, tokens)
                jobs.append((f"{form}  {name}", gib, {**ask, "pages": pages, "page_tokens": tokens}))
    return jobs


def ladder_jobs(gibs, values, page_tokens):
    return [(name, gib, {"policy": "learnt", "ladder": mode, "page_tokens": page_tokens,
                         "pages": pages_of(gib, values, BITS["BF16"], page_tokens)})
            for name, mode in LADDER for gib in gibs]


def disk_jobs(gibs, disk_gib, values, page_tokens):
    def pages(gib):
        return pages_of(gib, values, BITS["2.25 bits"], page_tokens)
    return [(name, gib, {"policy": policy, "admit": admit, "page_tokens": page_tokens, "pages": pages(gib),
                         "disk_pages": pages(disk_gib)})
            for name, policy, admit in DISK for gib in gibs]


def disk_table(results, values, page_tokens):
    """A line for each capacity of memory and way of admission."""
    page_mb = values * BITS["2.25 bits"] / 8 * page_tokens / 1e6
    rows = []
    for label, gib, job in sorted(results, key=lambda result: result[1]):
        from_disk = job["disk_hits"] * BLOCK_TOKENS / page_tokens  # in pages
        refused = (f"{job['disk_refused'][why]:,}" for why in ("not_worth", "behind"))
        rows.append([f"{gib} GiB", label, f"{job['hits_percent']:.1f}", f"{job['second_half_percent']:.1f}",
                     f"{100 * job['disk_hits'] / job['blocks']:.1f}", f"{job['disk_written'] * page_mb / 1e3:,.0f} GB",
                     f"{job['disk_written'] * page_mb / from_disk:.1f} MB" if from_disk else "-", *refused])
    return tables.layout(["memory", "", "hits, %", "second half", "of them from disk", "written", "a hit from disk",
                          "not worth it", "behind"], rows)


def table_of(results, gibs, key):
    rows = {}
    for label, gib, job in results:
        rows.setdefault(label, {})[gib] = job[key]
    return tables.layout(["", *(f"{gib} GiB" for gib in gibs)],
                         [[label, *(f"{by_gib[gib]:.1f}" for gib in gibs)] for label, by_gib in rows.items()])


def plot_of(results, gibs, height=16):
    """Hits against capacity, as text."""
    marks = {"BF16  LRU": "b", "FP8  LRU": "f", "2.25 bits  LRU": "l", "2.25 bits  learnt": "L",
             "2.25 bits  learnt, perfect hints": "H", "2.25 bits  offline optimum": "o"}
    points = {(label, gib): job["hits_percent"] for label, gib, job in results}
    top = max(points.values()) or 1.0
    width = 12
    grid = [[" "] * (width * len(gibs)) for _ in range(height + 1)]
    for label, mark in marks.items():
        for column, gib in enumerate(gibs):
            if (label, gib) in points:
                row = height - round(points[label, gib] / top * height)
                place = column * width + width // 2
                while grid[row][place] != " ":
                    place += 1
                grid[row][place] = mark
    lines = [f"{(height - i) / height * top:5.1f} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    axis = "      +" + "-" * (width * len(gibs))
    names = "       " + "".join(f"{gib} GiB".center(width) for gib in gibs)
    legend = "  ".join(f"{mark} {label}" for label, mark in marks.items())
    return "\n".join(["% of blocks hit", *lines, axis, names, legend])


def run_patterns(program, folder, page_tokens):
    """LRU, the learnt policy and the optimum on traces that reuse in other ways."""
    rows = []
    for name, requests in trace_patterns.PATTERNS.items():
        path = folder / f"trace_{name}.jsonl"
        trace_patterns.write(path, requests())
        for blocks in trace_patterns.CAPACITIES:
            asks = [{"policy": policy, "pages": blocks * BLOCK_TOKENS // page_tokens, "page_tokens": page_tokens}
                    for policy in ("lru", "learnt")] + [{"policy": "optimum", "pages": blocks}]
            lru, learnt, best = (job["hits_percent"] for job in run_jobs(program, path, asks))
            rows.append([name, str(blocks), *(f"{hits:.1f}" for hits in (lru, learnt, best)), f"{learnt - lru:+.1f}"])
    return tables.layout(["pattern", "blocks held", "LRU", "learnt", "optimum", "learnt - LRU"], rows)


def main(argv, build_dir):
    parser = argparse.ArgumentParser(prog="run bench trace", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=pathlib.Path, nargs="?", help="a trace as Mooncake publishes them (JSON lines)")
    parser.add_argument("--gib", default="16,32,64,128,256", help="capacities (%(default)s)")
    parser.add_argument("--model", default="qwen3-8b", choices=MODELS, help="whose KV sizes count (%(default)s)")
    parser.add_argument("--page-tokens", type=int, default=BLOCK_TOKENS,
                        help="%(default)s: every block is a page, the last and partial one too; a divisor of it: pages as "
                        "engines store them, whole ones only")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures")
    parser.add_argument("--ladder", action="store_true", help="also what the precision ladder is worth")
    parser.add_argument("--disk-gib", type=int, help="also a disk of so many GiB behind each memory: what is written for a hit")
    parser.add_argument("--patterns", action="store_true", help="also traces that reuse in other ways, made here")
    arguments = parser.parse_args(argv)
    if arguments.file is None and not arguments.patterns:
        parser.error("a trace, or --patterns")
    program = build_dir / "bin" / "trace_bench"
    folder = build_dir / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.file is not None:
        gibs = [float(gib) if "." in gib else int(gib) for gib in arguments.gib.split(",")]
        jobs = trace_jobs(gibs, MODELS[arguments.model], arguments.page_tokens)
        done = run_jobs(program, arguments.file, [job for _, _, job in jobs])
        results = [(label, gib, job) for (label, gib, _), job in zip(jobs, done)]
        print(f"trace {arguments.file.name}, {arguments.model}, pages of {arguments.page_tokens} tokens; "
              "% of blocks hit, whole trace")
        print(table_of(results, gibs, "hits_percent"))
        print("\nsecond half of the trace (nothing was tuned on it)")
        print(table_of(results, gibs, "second_half_percent"))
        print()
        print(plot_of(results, gibs))
        if arguments.ladder:
            laddered = ladder_jobs(gibs, MODELS[arguments.model], arguments.page_tokens)
            done = run_jobs(program, arguments.file, [job for _, _, job in laddered])
            laddered = [(label, gib, job) for (label, gib, _), job in zip(laddered, done)]
            print("\nthe precision ladder, learnt policy: the same bytes, every page pushed in BF16; % of blocks hit, whole trace")
            print(table_of(laddered, gibs, "hits_percent"))
            print("\npages re-encoded / evicted while others could have been re-encoded instead")
            print(tables.layout(["", *(f"{gib} GiB" for gib in gibs)],
                                [[name, *(f"{job['reencoded']} / {job['evicted_ahead']}" for label, _, job in laddered
                                          if label == name)] for name, _ in LADDER]))
            results += laddered
        if arguments.disk_gib is not None:
            with_disk = disk_jobs(gibs, arguments.disk_gib, MODELS[arguments.model], arguments.page_tokens)
            done = run_jobs(program, arguments.file, [job for _, _, job in with_disk])
            with_disk = [(label, gib, job) for (label, gib, _), job in zip(with_disk, done)]
            print(f"\na disk of {arguments.disk_gib} GiB behind memory, 2.25 bits; % of blocks hit in memory or on disk, and bytes of "
                  "pages written")
            print(disk_table(with_disk, MODELS[arguments.model], arguments.page_tokens))
            results += with_disk
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([{"label": label, "gib": gib, **job} for label, gib, job in results],
                                                 indent=1) + "\n")
    if arguments.patterns:
        print("\nmade traces; % of blocks hit")
        print(run_patterns(program, folder, arguments.page_tokens))
