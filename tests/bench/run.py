"""Runs the benchmarks and prints their tables: what was measured, what it is compared with in the same run, the floor.

    run.py --build-dir build/release [codec policy store service disk index advice ...]     (default: all)
    run.py --build-dir build/release trace FILE ...     (trace_report.py)
    run.py --build-dir build/release transfer ...       (transfer.py)

Writes BUILD_DIR/bench/NAME.json for every program that ran: Google Benchmark's own form; for the service, what
`oscarkv bench --json` prints for each form of pages; for the disk, bytes a second of each round.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import disk
import index
import tables
import trace_report
import transfer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import advice  # noqa: E402
from support.server_process import ServerProcess  # noqa: E402

PROGRAMS = {"codec": "codec_bench", "policy": "policy_bench", "store": "store_bench", "service": "oscarkv",
            "disk": "disk_bench", "index": "index_bench",
            "advice": "advice_bench"}
TABLES = {"codec": tables.codec, "policy": tables.policy, "store": tables.store, "service": tables.service,
          "disk": tables.disk, "index": index.table, "advice": advice.table}


def machine():
    """One line: what ran this."""
    name = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    sets = [label for flag, label in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_vnni", "VNNI"))
            if flag in flags]
    return f"{name}, {os.cpu_count()} cores, {', '.join(sets) or 'neither AVX2 nor AVX-512'}"


def run_program(program, build_dir, out, arguments):
    """Every benchmark `repetitions` times in random order, so that what disturbs the machine disturbs all alike."""
    command = [build_dir / "bin" / program, f"--benchmark_repetitions={arguments.repetitions}",
               "--benchmark_enable_random_interleaving=true", f"--benchmark_min_time={arguments.min_time}",
               f"--benchmark_out={out}", "--benchmark_out_format=json", f"--benchmark_filter={arguments.filter}"]
    with open(out.with_suffix(".log"), "w") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode != 0:
            sys.exit(f"run bench: {program} failed; its output: {out.with_suffix('.log')}")
    return tables.Medians(json.loads(out.read_text()))


def run_service(program, build_dir, out, arguments):
    """`oscarkv bench` against an oscarkvd on this machine, with PACKED pages and the same pages WIDE."""
    server = ServerProcess(build_dir, "unix", capacity="1GiB")
    command = [build_dir / "bin" / program, "bench", "--server", server.endpoint, "--json", "--sequences", "2",
               "--seconds", str(arguments.min_time * arguments.repetitions)]
    reports = {}
    for form, flags in (("packed", []), ("wide", ["--wide"])):
        done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            server.close()
            sys.exit(f"run bench: {program} bench failed")
        reports[form] = json.loads(done.stdout)
    server.close()
    out.write_text(json.dumps(reports, indent=2))
    return reports


def main():
    if sys.argv[1:2] == ["--build-dir"] and sys.argv[3:4] == ["trace"]:
        trace_report.main(sys.argv[4:], pathlib.Path(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--build-dir"] and sys.argv[3:4] == ["transfer"]:
        transfer.main(sys.argv[4:], pathlib.Path(sys.argv[2]), machine())
        return
    parser = argparse.ArgumentParser(prog="run bench", description="Runs the benchmarks and prints their tables.")
    parser.add_argument("names", nargs="*", choices=[[], *PROGRAMS], metavar="NAME",
                        help="codec, policy, store, service, disk, index, advice; all of them by default. `trace FILE` and "
                        "`transfer` are benchmarks with arguments of their own: --help after the name")
    parser.add_argument("--build-dir", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=5, help="of each benchmark; medians are shown (%(default)s)")
    parser.add_argument("--min-time", type=float, default=0.2, help="seconds of each repetition (%(default)s)")
    parser.add_argument("--filter", default=".", help="only benchmarks that match this expression (%(default)s)")
    arguments = parser.parse_args()
    folder = arguments.build_dir / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"machine: {machine()}")
    for name in arguments.names or PROGRAMS:
        print(f"run bench: {name} ...", file=sys.stderr, flush=True)
        run = {"service": run_service, "disk": disk.run, "index": index.run, "advice": advice.run}.get(name, run_program)
        figures = run(PROGRAMS[name], arguments.build_dir, folder / f"{name}.json", arguments)
        print(f"\n{TABLES[name](figures)}\n", flush=True)
    print(f"figures: {folder}/*.json")


if __name__ == "__main__":
    main()
