"""Fetches against what their look-ups said that they would take, under several loads."""

import pathlib
import tempfile

import programs
from support.server_process import ServerProcess
from tables import layout


def run(program, build_dir, out, arguments):
    """Pages in host memory, by either path of the host, and then more of them than it holds: the others are read from disk."""
    seconds = 5 * arguments.min_time * arguments.repetitions
    with tempfile.TemporaryDirectory(prefix="oscarkv-bench-") as folder:
        disk = ["--disk-path", str(pathlib.Path(folder) / "tier"), "--disk-capacity", "4GiB"]
        rows = []
        for where, options in (("memory", {"capacity": "2GiB"}), ("shm", {"capacity": "2GiB"}),
                               ("disk", {"capacity": "128MiB", "arguments": disk})):
            server = ServerProcess(build_dir, "unix", **options)
            rows += programs.figures(build_dir / "bin" / program, server.endpoint, seconds, where)
            server.close()
    return programs.save(out, rows)


def table(figures):
    columns = ("p10", "p50", "p90", "p99", "max", "first")
    rows = [[row["where"], row["load"], str(row["fetches"]), f"{100 * row['from_disk']:.0f} %",
             *(f"{row[column]:.2f}" for column in columns), f"{1 / row['p50']:.2f}"] for row in figures]
    return f"""\
advice: time of a fetch over the expected_ms of its look-up; prefixes of 1 to 16 MB by gRPC over a Unix socket (shm: by shared memory),
  server and clients on the same cores; first: the worst client's first fetch, before it had measured anything; of the rest, the first 30 of each client do not count
  limit: 2 at p99; told: the median look-up's expected_ms over what its fetch took
{layout(["pages in", "load", "fetches", "read from disk", *columns, "told"], rows)}"""
