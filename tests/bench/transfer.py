"""./run bench transfer: pages between two processes of this machine, by each of our paths, beside Redis, Mooncake Store, a
bare gRPC stream, plain sockets and memcpy; and look-ups, alone and while pages move.

Rounds go through all of them by turns, so that what disturbs the machine disturbs all alike; medians are shown.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import tables
import transfer_plot

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from support.server_process import ServerProcess  # noqa: E402

KIB = 1 << 10
SIZES = (64 * KIB, 256 * KIB, 704 * KIB, 1024 * KIB)
CONNECTIONS, BATCHES = (1, 2), (1, 16)
SET_BYTES = 192 << 20  # that gets choose from
BF16_BITS, OUR_BITS = 16, 2.25
LOOKUPS = {"alone": (1, 0), "two clients": (2, 0), "beside one fetching client": (1, 1), "beside two": (1, 2)}
TURNS, TURN_S = 15, 0.05  # of ours and of the bare stream


class NotMeasured(Exception):
    """Why a peer is not here."""


def lines_of(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotMeasured(next((line for line in said if "_peer: " in line or "_bench: " in line), said[-1]))
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@contextlib.contextmanager
def process(command, ready, **options):
    """A process that has said `ready`; killed at the end. Gives the line."""
    running = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options)
    try:
        for line in running.stdout:
            if ready in line:
                yield line
                return
        raise NotMeasured(f"{command[0]} ended before it was ready")
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Bench:
    def __init__(self, build_dir, arguments):
        self._bin = build_dir / "bin"
        self._build_dir = build_dir
        self._venv = build_dir.parent / "peers-venv" / "bin"
        self.seconds = arguments.seconds
        self.folder = tempfile.TemporaryDirectory(prefix="oscarkv-bench-")

    def measure(self, peer, endpoint, page_bytes, *options, seconds=None):
        return lines_of([self._bin / "transfer_bench", "measure", "--peer", peer, "--endpoint", endpoint, "--page-bytes", page_bytes,
                         "--seconds", seconds or self.seconds, "--set-bytes", SET_BYTES, "--connections", ",".join(map(str, CONNECTIONS)),
                         "--batches", ",".join(map(str, BATCHES)), *options])

    def _local(self, listen, name):
        return f"unix:{self.folder.name}/{name}" if listen == "unix" else "127.0.0.1:0"

    def ours(self, listen, *options):
        server = ServerProcess(self._build_dir, "unix" if listen == "unix" else "127.0.0.1:0", capacity="1GiB")
        try:
            return [line for size in SIZES for line in self.measure("ours", server.endpoint, size, *options)]
        finally:
            server.close()

    @contextlib.contextmanager
    def _serve(self, peer, listen, name=""):
        """The endpoint of another's other end."""
        command = [self._bin / "transfer_bench", f"serve-{peer}", "--endpoint", self._local(listen, peer + name), "--set-bytes", SET_BYTES]
        with process(command, "listening on") as line:
            yield line.split()[-1]
        if listen == "unix":
            os.unlink(line.split()[-1].removeprefix("unix:"))

    def served(self, peer, listen):
        with self._serve(peer, listen) as endpoint:
            return [line for size in SIZES for line in self.measure(peer, endpoint, size)]

    def beside_bare(self, listen):
        """Ours and the bare stream by short turns, so that both see the same machine."""
        server = ServerProcess(self._build_dir, "unix" if listen == "unix" else "127.0.0.1:0", capacity="1GiB")
        try:
            with self._serve("bare", listen) as endpoint:
                return [line for size in SIZES for line in self.measure(
                    "ours", server.endpoint, size, "--beside", "bare", "--beside-endpoint", endpoint, "--turns", TURNS, seconds=TURN_S)]
        finally:
            server.close()

    def redis(self):
        if not shutil.which("redis-server"):
            raise NotMeasured("redis-server is not installed (Debian's redis-server)")
        port = free_port()
        with process(["redis-server", "--port", port, "--save", "", "--appendonly", "no", "--maxmemory", "1gb"], "Ready to accept",
                     cwd=self.folder.name):
            return [line for size in SIZES for line in self.measure("redis", f"127.0.0.1:{port}", size)]

    def mooncake(self):
        if not (self._venv / "mooncake_master").exists():
            log = self._venv.parent.parent / "peers-venv.log"
            last = log.read_text().strip().splitlines()[-1:] if log.exists() else ["not asked for"]
            raise NotMeasured(f"mooncake-transfer-engine-non-cuda is not installed: {''.join(last)}")
        port, script = free_port(), pathlib.Path(__file__).with_name("mooncake_peer.py")
        quiet = {"stderr": subprocess.DEVNULL}
        master = subprocess.Popen([self._venv / "mooncake_master", "--rpc_port", str(port), "--metrics_port", str(free_port())],
                                  stdout=subprocess.DEVNULL, **quiet)
        try:
            with process([self._venv / "python", script, "segment", f"127.0.0.1:{port}", free_port(), 1 << 30], "listening", **quiet):
                return [line for size in SIZES for line in lines_of(
                    [self._venv / "python", script, "measure", f"127.0.0.1:{port}", free_port(), size,
                     ",".join(map(str, CONNECTIONS)), ",".join(map(str, BATCHES)), self.seconds, SET_BYTES])]
        finally:
            master.kill()
            master.wait()

    def memcpy(self, *options):
        return [line for size in SIZES for line in self.measure("memcpy", "none", size, *options)]

    def _look_up(self, endpoint, *options):
        return lines_of([self._bin / "transfer_bench", "lookups", "--endpoint", endpoint, "--seconds", max(2.0, self.seconds), *options])[0]

    def lookups(self, listen):
        server = ServerProcess(self._build_dir, listen, capacity="1GiB")
        try:
            return {name: self._look_up(server.endpoint, "--clients", clients, "--bulk", bulk) for name, (clients, bulk) in LOOKUPS.items()}
        finally:
            server.close()

    def floor(self, listen, peer):
        """Small calls that do nothing beside a bare stream, each between two processes of their own: what the machine itself takes."""
        with self._serve(peer, listen, "-small") as small, self._serve("bare", listen) as bulk:
            return {name: self._look_up(small, "--peer", peer, "--bulk-peer", "bare", "--bulk-endpoint", bulk, "--bulk", count)
                    for name, (_, count) in LOOKUPS.items() if count > 0}


def between_gpus(build_dir, folder):
    """(what peer_bench prints, its rows), of pages between a server's GPU and a worker's; or why not, and none."""
    program = build_dir.parent / "cuda" / "bin" / "peer_bench"
    if not pathlib.Path("/dev/nvidia0").exists():
        return "pages between GPUs: not measured: this machine has none", []
    if not program.exists():
        return f"pages between GPUs: not measured: {program} is not there (./run gpu-bench builds it)", []
    rows = pathlib.Path(folder) / "between_gpus.json"
    done = subprocess.run([program, "--json", rows], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return f"pages between GPUs: not measured: peer_bench ended with {done.returncode}", []
    return f"pages between a server's GPU and a worker's, encoded; beside one copy of as many bytes\n{done.stdout}", json.loads(rows.read_text())


def paths(bench):
    """What is measured, by its name."""
    return {
        "ours, gRPC, TCP": lambda: bench.ours("tcp"),
        "ours, gRPC, TCP, client does not verify": lambda: bench.ours("tcp", "--no-checksum"),
        "bare gRPC stream, TCP": lambda: bench.served("bare", "tcp"),
        "Redis, TCP": bench.redis,
        "Mooncake Store, TCP": bench.mooncake,
        "send and recv, TCP": lambda: bench.served("raw", "tcp"),
        "ours, gRPC, Unix socket": lambda: bench.ours("unix"),
        "bare gRPC stream, Unix socket": lambda: bench.served("bare", "unix"),
        "ours, shared memory": lambda: bench.ours("unix", "--path", "shm"),
        "ours, shared memory, client does not verify": lambda: bench.ours("unix", "--path", "shm", "--no-checksum"),
        "send and recv, Unix socket": lambda: bench.served("raw", "unix"),
        "memcpy": lambda: bench.memcpy("--no-checksum"),
        "memcpy and CRC32C": bench.memcpy,
    }


def median(values):
    return sorted(values)[len(values) // 2]


def cells_of(rounds):
    """{name: {(size, work, connections, batch): median line with the least and most bytes a second}}, {name: reason}."""
    cells, missing = collections.defaultdict(dict), {}
    gathered = collections.defaultdict(lambda: collections.defaultdict(list))
    for one in rounds:
        for name, lines in one.items():
            if isinstance(lines, str):
                missing[name] = lines
                continue
            for line in lines:
                gathered[name][line["page_bytes"], line["work"], line["connections"], line["batch"]].append(line)
    for name, found in gathered.items():
        for cell, lines in found.items():
            rates = [line["bytes_per_second"] for line in lines]
            cells[name][cell] = {**{key: median([line[key] for line in lines])
                                    for key in ("bytes_per_second", "p50_us", "p99_us", "p999_us")},
                                 **{key: sum(line[key] for line in lines) for key in ("calls", "failed", "verified", "mismatched")},
                                 "least": min(rates), "most": max(rates)}
    return cells, missing


def best(cells, size, work):
    """(line, connections, batch) with the most bytes a second."""
    return max(((line, *cell[2:]) for cell, line in cells.items() if cell[:2] == (size, work)),
               key=lambda found: found[0]["bytes_per_second"])


def table(cells, missing, names):
    header = ["", "GET GB/s", "rounds", "c x b", "as bf16", "PUT GB/s", "c x b", "one GET p50 us", "p99", "p99.9", "failed", "verified"]
    parts = []
    for size in SIZES:
        rows = []
        for name in names:
            if name in missing:
                rows.append([name, "not measured"] + [""] * (len(header) - 2))
                continue
            (get, connections, batch), (put, *put_at) = best(cells[name], size, "get"), best(cells[name], size, "put")
            one = cells[name][size, "get", 1, 1]
            count = [sum(line[key] for cell, line in cells[name].items() if cell[0] == size) for key in ("failed", "verified", "mismatched")]
            rows.append([name, f"{get['bytes_per_second'] / 1e9:.2f}", f"{get['least'] / 1e9:.2f}..{get['most'] / 1e9:.2f}",
                         f"{connections} x {batch}", f"{get['bytes_per_second'] / 1e9 * BF16_BITS / OUR_BITS:.1f}",
                         f"{put['bytes_per_second'] / 1e9:.2f}", "{} x {}".format(*put_at), f"{one['p50_us']:.0f}",
                         f"{one['p99_us']:.0f}", f"{one['p999_us']:.0f}", str(count[0]),
                         f"{count[1]}" if not count[2] else f"{count[1]}, {count[2]} WRONG"])
        parts.append(f"pages of {size // KIB} KiB\n{tables.layout(header, rows)}")
    reasons = [f"not measured: {name}: {why}" for name, why in missing.items()]
    return "\n\n".join([*parts, "\n".join(reasons)] if reasons else parts)


def share_table(rounds):
    """What of a bare stream's rate ours has in the turn beside it: the median of all turns of all rounds, cell by cell."""
    cells = collections.defaultdict(list)
    for one in rounds:
        for listen, lines in one.items():
            for line in lines:
                cells[listen, line["work"], line["page_bytes"], line["connections"], line["batch"]].append(100 * line["share"])
    rows = [[f"{listen}, {work.upper()}, {size // KIB} KiB",
             *(f"{median(cells[listen, work, size, connections, batch]):.0f}" for connections in CONNECTIONS for batch in BATCHES)]
            for listen in ("tcp", "unix") for work in ("get", "put") for size in SIZES]
    header = ["ours in per cent of a bare gRPC stream, by turns", *(f"{connections} x {batch}" for connections in CONNECTIONS for batch in BATCHES)]
    return tables.layout(header, rows)


def beside(rounds, ours, others):
    """The speed of our median GET as a multiple of that of the best of the others, size by size, each round by itself: one
    connection, the best batch of each. The median call is one that other work on the machine did not interrupt."""
    def speed(lines, size):
        return max(size * line["batch"] / line["p50_us"] for line in lines
                   if line["page_bytes"] == size and line["work"] == "get" and line["connections"] == 1 and line["calls"])

    parts = []
    for size in SIZES:
        ratios = []
        for one in rounds:
            measured = [one[name] for name in others if isinstance(one.get(name), list)]
            if measured and isinstance(one.get(ours), list):
                ratios.append(speed(one[ours], size) / max(speed(lines, size) for lines in measured))
        if ratios:
            parts.append(f"{size // KIB} KiB {median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
    return ", ".join(parts)


def lookup_table(rounds):
    rows = []
    for listen, name in (("tcp", "TCP"), ("unix", "Unix socket"), ("bare", "a bare gRPC call"), ("raw", "send and recv of 2 KiB")):
        for what in LOOKUPS:
            if what not in rounds[0][listen]:
                continue
            lines = [one[listen][what] for one in rounds]
            rows.append([f"{name}, {what}", *(f"{median([line[key] for line in lines]):.0f}" for key in ("p50_us", "p99_us", "p999_us")),
                         f"{median([line['keys_per_second'] for line in lines]) / 1e6:.2f}",
                         f"{median([line['bulk_bytes_per_second'] for line in lines]) / 1e9:.2f}", str(sum(line["failed"] for line in lines))])
    return "look-ups of 128 keys\n" + tables.layout(["", "p50 us", "p99", "p99.9", "M keys/s", "fetched beside, GB/s", "failed"], rows)


HEADING = """\
pages between two processes of this machine, client and server share its cores; GB/s of page bytes (1e9), the best of {cells};
"c x b": with so many connections and pages a call. GET as bf16: what the bytes stand for at 2.25 bits an element (x 7.1).
Ours verifies a CRC32C of every block on both sides; nobody else verifies. One GET: a page a call on one connection."""


def main(argv, build_dir, machine):
    parser = argparse.ArgumentParser(prog="run bench transfer", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="also write every figure of every round there")
    parser.add_argument("--plot", type=pathlib.Path, help="also draw GETs there, as SVG")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement (%(default)s)")
    parser.add_argument("--only", help="only what has this in its name, look-ups and \"beside a bare stream\" among it")
    arguments = parser.parse_args(argv)
    bench = Bench(build_dir, arguments)
    wanted = {name: run for name, run in paths(bench).items() if not arguments.only or arguments.only in name}
    rounds, lookups, besides, loads = [], [], [], []
    for number in range(arguments.rounds):
        found = {}
        for name, run in wanted.items():
            print(f"run bench: round {number + 1} of {arguments.rounds}: {name} ...", file=sys.stderr, flush=True)
            loads.append(os.getloadavg()[0])
            try:
                found[name] = run()
            except NotMeasured as why:
                found[name] = str(why)
        rounds.append(found)
        if not arguments.only or arguments.only in "look-ups":
            lookups.append({"tcp": bench.lookups("127.0.0.1:0"), "unix": bench.lookups("unix"), "bare": bench.floor("tcp", "bare"),
                            "raw": bench.floor("tcp", "raw")})
        if not arguments.only or arguments.only in "beside a bare stream":
            besides.append({listen: bench.beside_bare(listen) for listen in ("tcp", "unix")})
    cells, missing = cells_of(rounds)
    print(f"machine: {machine}; load before each: {min(loads, default=0):.1f}..{max(loads, default=0):.1f}\n")
    if wanted:
        print(HEADING.format(cells=f"{'/'.join(map(str, CONNECTIONS))} connections and {'/'.join(map(str, BATCHES))} pages a call"))
        print(f"\n{table(cells, missing, wanted)}\n")
        for others in (("memcpy and CRC32C",), ("Redis, TCP", "Mooncake Store, TCP")):
            if found := beside(rounds, "ours, shared memory", others):
                print(f"ours, shared memory, the median GET's speed on one connection, times that of {' or '.join(others)}: {found}")
    if besides:
        print(share_table(besides))
    if lookups:
        print(f"\n{lookup_table(lookups)}")
    text, gpus = between_gpus(build_dir, bench.folder.name) if not arguments.only or arguments.only in "GPUs" else ("", [])
    if text:
        print(f"\n{text}")
    if arguments.json:
        figures = {"machine": machine, "load": loads, "rounds": rounds, "lookups": lookups, "beside": besides, "between_gpus": gpus}
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.plot and cells:
        series = {name: [best(cells[name], size, "get")[0]["bytes_per_second"] / 1e9 for size in SIZES] for name in wanted if name in cells}
        arguments.plot.write_text(transfer_plot.bars([f"{size // KIB} KiB" for size in SIZES], series, "GET, GB/s of page bytes"))
