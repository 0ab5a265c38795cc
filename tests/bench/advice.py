"""Fetches against what their look-ups said that they would take, under several loads."""

import programs
from support.server_process import ServerProcess
from tables import layout


def run(program, build_dir, out, arguments):
    server = ServerProcess(build_dir, "unix", capacity="2GiB")
    seconds = 5 * arguments.min_time * arguments.repetitions
    figures = programs.figures(build_dir / "bin" / program, server.endpoint, seconds)
    server.close()
    return programs.save(out, figures)


def table(figures):
    columns = ("p10", "p50", "p90", "p99", "max", "first")
    rows = [[row["load"], str(row["fetches"]), *(f"{row[column]:.2f}" for column in columns)] for row in figures]
    return f"""\
advice: time of a fetch over the expected_ms of its look-up; prefixes of 1 to 16 MB over a Unix socket, server and clients on the same
  cores; first: the worst client's first fetch, before it had measured anything; of the rest, the first 30 of each client do not count
  limit: 2 at p99
{layout(["load", "fetches", *columns], rows)}"""
