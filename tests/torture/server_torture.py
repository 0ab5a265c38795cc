"""Kills oscarkvd with SIGKILL, at moments that nobody chose and, where there is an oscarkvd_faults, every other time at a
named place of the program, while clients put, persist, read and delete; starts it again, and holds what is there against
what it had said is durable.

    server_torture.py [--kills N] [--seed N] [--clients N] [--folder PATH] [--build-dir PATH]

After every restart, before any client has opened it, the namespace and its transform set must be there; each page that
was acknowledged as durable, and not deleted since, must be whole; every other page whole or absent. Every byte is
compared. Exit status 1 if a page is missing or wrong. A seed replays what clients do; when the kill comes, does not repeat.
"""

import argparse
import dataclasses
import pathlib
import random
import sys
import tempfile
import threading
import time

import numpy as np
import oscarkv
from support.server_process import ServerProcess

LAYERS, HEADS, DIM, PAGE_TOKENS, PAGES = 2, 2, 32, 16, 6
SEQUENCES = 96  # a client: together more than host memory holds
TOKENS = PAGES * PAGE_TOKENS
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="fp32")
TRANSFORMS = oscarkv.TransformSet.hadamard(GEOMETRY)
# The first page of a sequence and its last are wide: pages of both forms, and some that the server re-encodes.
SPEC = oscarkv.NamespaceSpec("torture", GEOMETRY, oscarkv.CodecSpec(
    transform_hash=TRANSFORMS.hash, sink_tokens=PAGE_TOKENS, recent_tokens=PAGE_TOKENS))
ACKNOWLEDGED_MAX = 60  # answers before a kill, at most
PAUSE_S_MAX = 0.02     # and time after them
CALL_MS = 60_000       # a server that lives answers; a dead one says so at once
# Places on the way of a page to the disk and back (kernels/base/fault_point.h), and how often they are passed before.
PLACES = ["persist.saved", "persist.durable", "archive.pinned", "archive.written", "archive.reserved", "archive.read",
          "grpc.server.put.filled", "grpc.server.put.committed"]
TIMES_MAX = 12
NOWHERE = "nowhere 1 kill"

# Host memory holds a part of the pages, so that some are on disk only; segments are small, so that many are begun.
CONFIG = """
disk: {{path: {folder}, capacity: 512MiB, segment: 4MiB, io: {io}, admit: {admit}}}
ladder: {{store_wide: tail}}
"""


class Sequence:
    """What one sequence's pages are: their keys, and their rows in both forms, [page, side, layer, token, head, dim]."""

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.keys = oscarkv.chain_keys(rng.integers(0, 2**31, TOKENS).astype(np.uint32), PAGE_TOKENS)
        self.k, self.v = rng.normal(size=(2, LAYERS, TOKENS, HEADS, DIM)).astype(np.float32)
        codec = oscarkv.PageCodec(GEOMETRY, SPEC.codec, TRANSFORMS)
        packed = np.zeros_like(self.k), np.zeros_like(self.v)
        for page in range(PAGES):
            slots = np.arange(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            data, crcs = codec.encode(oscarkv.PagedKv(self.k, self.v), slots, "packed")
            codec.decode(data, crcs, oscarkv.PagedKv(*packed), slots, "packed")
        self.forms = (self.k, self.v), packed

    def push(self, space, pages):
        slots = np.arange(pages * PAGE_TOKENS)
        return space.push(oscarkv.PagedKv(self.k, self.v), slots, self.keys[:pages], end_position=pages * PAGE_TOKENS)

    def read(self, space):
        """How many leading pages are there, and how many of them have bytes that nobody wrote."""
        found = np.full_like(self.k, np.nan), np.full_like(self.v, np.nan)
        pages = space.fetch(oscarkv.PagedKv(*found), np.arange(TOKENS), self.keys).pages
        wrong = 0
        for page in range(pages):
            rows = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            wrong += not any(all(np.array_equal(side[:, rows], expected[:, rows]) for side, expected in zip(found, form))
                             for form in self.forms)
        return pages, wrong


@dataclasses.dataclass
class Counts:
    acknowledged: int = 0  # pages said to be durable, and not deleted since; looked for after each kill
    found: int = 0
    missing: int = 0
    other_whole: int = 0   # pages that nobody promised
    other_absent: int = 0
    wrong: int = 0
    kills_at_places: int = 0

    def __str__(self):
        return (f"of them {self.kills_at_places} at named places; acknowledged {self.acknowledged}, found {self.found}, missing {self.missing}; of others whole "
                f"{self.other_whole}, absent {self.other_absent}; wrong: {self.wrong}")


class Worker:
    """A client with sequences of its own: what it does is drawn from its seed, until the server is gone."""

    def __init__(self, number):
        self.sequences = [Sequence(number * SEQUENCES + i) for i in range(SEQUENCES)]
        self.durable = [0] * SEQUENCES  # leading pages of each that are durable
        self.wrong = 0

    def run(self, endpoint, seed, answered):
        rng = random.Random(seed)
        with oscarkv.Client(endpoint, timeout_ms=CALL_MS, control_timeout_ms=CALL_MS, attempts=1) as client:
            space = client.open(SPEC, transforms=TRANSFORMS)
            while self._act(space, rng):
                answered()

    def _act(self, space, rng):
        """One call; False when the server did not answer."""
        number = rng.randrange(SEQUENCES)
        sequence, pages = self.sequences[number], rng.randint(1, PAGES)
        action = rng.choices(["put", "persist", "put and persist", "read", "delete"], [4, 3, 4, 3, 1])[0]
        if "put" in action and sequence.push(space, pages).error:
            return False
        if "persist" in action:
            report = space.persist(sequence.keys[:pages], timeout_ms=CALL_MS)
            said = [status == "OK" for status in report.statuses]
            # A page is durable with all that it extends.
            last = max((page + 1 for page, durable in enumerate(said) if durable), default=0)
            self.durable[number] = max(self.durable[number], last)
            return not report.error
        if action == "read":
            self.wrong += sequence.read(space)[1]
            return not space.lookup(sequence.keys).error
        if action == "delete":
            # From here on nobody knows, whatever comes of the call.
            self.durable[number] = min(self.durable[number], pages - 1)
            space.delete(sequence.keys[pages - 1:pages])
            return not space.lookup(sequence.keys).error
        return True

    def look(self, space, counts):
        for sequence, durable in zip(self.sequences, self.durable):
            pages, wrong = sequence.read(space)
            counts.acknowledged += durable
            counts.found += min(pages, durable)
            counts.missing += max(durable - pages, 0)
            counts.other_whole += max(pages - durable, 0) - wrong
            counts.other_absent += PAGES - max(pages, durable)
            counts.wrong += wrong


def kill_under_load(server, workers, seed, fault):
    """Lets the workers work until the server dies of its fault, or, without one, until some calls have been answered and
    some time has passed; then kills it."""
    rng = random.Random(seed)
    left = ACKNOWLEDGED_MAX * TIMES_MAX if fault else rng.randrange(ACKNOWLEDGED_MAX)
    enough = threading.Event()
    lock = threading.Lock()

    def answered():
        nonlocal left
        with lock:
            left -= 1
            if left <= 0:
                enough.set()
    threads = [threading.Thread(target=worker.run, args=(server.endpoint, rng.getrandbits(32), answered))
               for worker in workers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CALL_MS / 1000
    while not (enough.wait(PAUSE_S_MAX) or server.ended):
        if time.monotonic() > deadline:
            raise RuntimeError(f"clients do not get on: {left} answers are still to come")
    threading.Event().wait(rng.random() * PAUSE_S_MAX)
    at_place = server.ended
    server.kill()
    for thread in threads:
        thread.join()
    return at_place


def look(server, workers, counts):
    """What a server that has just been started has."""
    with oscarkv.Client(server.endpoint, timeout_ms=CALL_MS, control_timeout_ms=CALL_MS) as client:
        if any(any(worker.durable) for worker in workers):
            spaces = [space["spec"]["model"] for space in client.stats().get("namespaces", [])]
            if spaces != ["torture"] or client.get_transform_set(TRANSFORMS.hash).hash != TRANSFORMS.hash:
                raise RuntimeError("the namespace or its transform set was lost with durable pages in it")
        space = client.open(SPEC, transforms=TRANSFORMS)
        for worker in workers:
            worker.look(space, counts)


class Bar:
    """Progress, where somebody watches."""

    def show(self, done, of, counts):
        if sys.stderr.isatty():
            filled = 30 * done // of
            end = "\n" if done == of else ""
            print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{of} kills, {counts}", end=end, file=sys.stderr,
                  flush=True)


def torture(build_dir, folder, kills, seed, clients=3):
    """Kills a server `kills` times; what was found, over all restarts."""
    rng, counts, bar = random.Random(seed), Counts(), Bar()
    workers = [Worker(number) for number in range(clients)]
    config = pathlib.Path(folder) / "oscarkvd.yaml"

    def configure(kill):
        config.write_text(CONFIG.format(folder=pathlib.Path(folder) / "tier", io=("auto", "pread")[kill % 2],
                                        admit=("all", "fetched", "worth")[kill // 2 % 3]))
    configure(0)
    with_faults = (build_dir / "bin" / "oscarkvd_faults").exists()
    server = ServerProcess(build_dir, "unix", ["--config", str(config)], capacity="16MiB",
                           fault=NOWHERE if with_faults else "")
    try:
        for kill in range(kills):
            fault = f"{rng.choice(PLACES)} {rng.randint(1, TIMES_MAX)} kill" if with_faults and kill % 2 else ""
            if fault:
                server.kill()
                server.start(fault)
            counts.kills_at_places += kill_under_load(server, workers, rng.getrandbits(32), fault)
            configure(kill + 1)
            server.start()
            look(server, workers, counts)
            bar.show(kill + 1, kills, counts)
    finally:
        server.close()
    counts.wrong += sum(worker.wrong for worker in workers)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="0: one at random")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--folder", help="where the disk tier lies; a temporary folder by default")
    parser.add_argument("--build-dir", default="build/dev")
    arguments = parser.parse_args()
    seed = arguments.seed or random.SystemRandom().randrange(1, 1_000_000)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oscarkv_torture_") as scratch:
        counts = torture(pathlib.Path(arguments.build_dir).resolve(), arguments.folder or scratch, arguments.kills, seed,
                         arguments.clients)
    print(f"oscarkvd: kills {arguments.kills}, {counts}")
    return 1 if counts.missing or counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
