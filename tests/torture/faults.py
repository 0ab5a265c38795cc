"""Kills and stalls a worker or a server at every named place of the program, and the line between them anywhere:

    ./run faults [--kills N] [--seed N] [--only TEXT] [--json FILE]

Real processes: oscarkvd and workers, so built that they die or stop where they are told to (fault_from_environment.cc). The
places are those that the sources name (kernels/base/fault_point.h). What is held against what should be: the bytes of all that
is fetched, meanwhile and afterwards; how long any call of the client takes, which has a deadline; how long after a worker's
death the server has given back all that the worker held. The exit status is 1 if a byte is wrong, a call takes longer than its
deadline and what a busy machine adds, memory takes longer than a second, or a place is never come to.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import re
import secrets
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]

import numpy as np  # noqa: E402
import oscarkv  # noqa: E402
from support import shared_memory  # noqa: E402
from support.server_process import DEADLINE_S, ServerProcess  # noqa: E402
from support.slow_proxy import SlowProxy  # noqa: E402
from support.worker_process import WorkerProcess  # noqa: E402
from worker import SPEC, TRANSFORMS, Cache, encodings_of, expected_rows, keys_of  # noqa: E402

PAGES = 6
TIMEOUT_MS = 500
BEYOND_S = 1.0  # what a call may take beyond its deadline where other processes want the processor too
BACK_S = 1.0
TURNS = 8  # of a worker, at most: every place but those of the disk is come to in each
# Every page is many messages; nothing to fall back to.
CONFIGS = {"grpc": "limits:\n  max_chunk: 4KiB\npaths:\n  fetch: [grpc]\n  push: [grpc]\n", "shm": shared_memory.CONFIG}
SMALL = "16MiB"  # of host memory: little, so that others' pages are soon in every place
LINE = ("line.get", "line.put", "line.lookup", "line.session")


def points_of(sources):
    """The names of the places in the sources: of gRPC's path and of shared memory's, and of the disk behind them."""
    found = set()
    for folder in ("client/cpp", "server"):
        for path in (sources / folder).rglob("*.cc"):
            found.update(re.findall(r'FaultPoint\("((?:grpc|shm|archive)\.[a-z._]+)"\)', path.read_text()))
    return sorted(found)


class Server(ServerProcess):
    """Dies or stops at the place that `start` is given."""

    def start(self, fault=""):
        self._program = self._program.with_name("oscarkvd_faults" if fault else "oscarkvd")
        super().start(fault)

    @property
    def stopped(self):
        return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    def wait_for(self, condition, what):
        """As wait_until; but the process may end meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
            self._output.select(0.01)


class Seen:
    """What was found, of all trials."""

    def __init__(self):
        self.kills = collections.Counter()
        self.stalls = collections.Counter()
        self.reads = self.wrong = self.calls = 0
        self.longest_wait_s = self.longest_back_s = 0.0

    def as_json(self):
        return {"kills": sum(self.kills.values()), "stalls": sum(self.stalls.values()), "reads": self.reads,
                "wrong": self.wrong, "calls": self.calls, "deadline_s": TIMEOUT_MS / 1000,
                "longest_wait_s": round(self.longest_wait_s, 3), "longest_until_memory_was_back_s": round(self.longest_back_s, 3),
                "kills_by_place": dict(sorted(self.kills.items())), "stalls_by_place": dict(sorted(self.stalls.items()))}


class Caller:
    """A client of the server, in this process: counts what it reads, and how long its calls take."""

    def __init__(self, seen, endpoint):
        self._seen = seen
        self._client = oscarkv.Client(endpoint, timeout_ms=TIMEOUT_MS, control_timeout_ms=TIMEOUT_MS, breaker_failures=1000)
        self._space = self.timed(self._client.open, SPEC, transforms=TRANSFORMS)

    def timed(self, function, *arguments, **options):
        start = time.monotonic()
        result = function(*arguments, **options)
        self._seen.calls += 1
        self._seen.longest_wait_s = max(self._seen.longest_wait_s, time.monotonic() - start)
        return result

    def push(self, text):
        keys = keys_of(PAGES, text)
        cache = Cache(seed=1)
        cache.fill(keys)
        return self.timed(self._space.push, cache.kv, cache.slots(PAGES), keys)

    def lookup(self, text, lease=False):
        return self.timed(self._space.lookup, keys_of(PAGES, text), lease=lease)

    def fetch(self, text, hit=None):
        """How many pages came; whether they are those of the text, and nothing else was touched, is counted."""
        keys = keys_of(PAGES, text)
        cache = Cache(seed=2)
        report = self.timed(self._space.fetch, cache.kv, cache.slots(PAGES), keys, hit=hit)
        rows = cache.rows(PAGES)
        right = np.isnan(rows[:, :, report.tokens:]).all()
        if report.pages:
            expected = expected_rows(keys[:report.pages], encodings_of(PAGES)[:report.pages])
            right &= np.array_equal(rows[:, :, :report.tokens], expected)
        self._seen.reads += 1
        self._seen.wrong += not right
        return report.pages

    def turn(self, text):
        """All that a worker does."""
        self.push(text)
        hit = self.lookup(text, lease=True)
        self.fetch(text, hit)
        self.timed(hit.release)

    def goes_on(self, server, text):
        """Finds the server again; from then on all is as ever."""
        server.wait_until(lambda: not self.lookup(text).error, "the server is found")
        server.wait_until(lambda: not self.push(text).error, "pushes go on")
        server.wait_until(lambda: self.fetch(text) == PAGES, "fetches go on")

    def flood(self, server):
        """Puts pages until others have had to go for them everywhere."""
        removed = 'oscarkv_removed_pages_total{reason="evicted"}'
        before = int(self._client.stats()["counters"][removed])
        texts = iter(range(1_000_000))
        server.wait_until(lambda: self.push(f"flood {next(texts)}") and
                          int(self._client.stats()["counters"][removed]) > before + 2000, "other pages are in every place")

    def delete(self, text):
        self.timed(self._space.delete, keys_of(PAGES, text)[:1])  # with what extends it

    def clear(self):
        self.timed(self._space.clear)

    def held(self):
        stats = self._client.stats()
        return {"sessions": int(stats["sessions"]), "leases": int(stats["leases"]), "in flight": int(stats["inflight_bytes"]),
                "leased": sum(int(tier["leased_bytes"]) for tier in stats["tiers"])}

    def used(self):
        return sum(int(tier["used_bytes"]) for tier in self._client.stats()["tiers"] if tier["tier"] == "host")

    def written(self):
        """Pages on disk; 0 when nobody answers."""
        try:
            return int(self._client.stats()["counters"]["oscarkv_disk_written_pages_total"])
        except RuntimeError:
            return 0

    def close(self):
        self._client.close()


class Suite:
    def __init__(self, build_dir, folder):
        self._build_dir = build_dir
        self._folder = pathlib.Path(folder)
        for path, config in CONFIGS.items():
            (self._folder / f"{path}.yaml").write_text(config + "disk:\n  admit: all\n")
        self.seen = Seen()
        self._disks = 0

    @contextlib.contextmanager
    def _server(self, point, fault="", disk=False):
        """An oscarkvd that moves pages by the point's path, whose first process has the fault; with a disk, one that holds a
        text already."""
        path = "shm" if point.startswith("shm.") else "grpc"
        arguments = ["--config", str(self._folder / f"{path}.yaml")]
        if disk:
            self._disks += 1
            arguments += ["--disk-path", str(self._folder / f"disk{self._disks}"), "--disk-capacity", "600MiB"]
        server = Server(self._build_dir, "unix", arguments, capacity=SMALL)
        try:
            if disk:
                self._fill(server)
            if disk or fault:
                server.kill()
                server.start(fault)
            yield server
        finally:
            server.close()

    def _fill(self, server):
        with self._caller(server.endpoint) as caller:
            caller.push("on disk")
            server.wait_until(lambda: caller.written() == PAGES, "the pages are on disk")

    @contextlib.contextmanager
    def _caller(self, endpoint):
        caller = Caller(self.seen, endpoint)
        try:
            yield caller
        finally:
            caller.close()

    def _worker(self, server, point, count, action):
        return WorkerProcess(server.endpoint, 60_000, environment={
            "PYTHONPATH": str(self._build_dir / "python_faults"), "OSCARKV_FAULT": f"{point} {count} {action}"})

    def _turns_until(self, server, happened, point):
        """A worker's turns until the fault has come, each with connections of its own."""
        for turn in range(TURNS):
            with self._caller(server.endpoint) as caller:
                caller.turn(f"turn {turn}")
                if on_disk(point):
                    caller.fetch("on disk")
                    server.wait_for(lambda: happened() or caller.written() >= PAGES * (turn + 1), "the pages are on disk")
            if happened():
                return
        server.wait_for(happened, f"oscarkvd comes to {point}")

    # --- Trials ---

    def kill_server(self, point, chance):
        with self._server(point, f"{point} {times(point, chance)} kill", on_disk(point)) as server:
            self._turns_until(server, lambda: server.ended, point)
            self.seen.kills[point] += 1
            server.kill()
            server.start()
            with self._caller(server.endpoint) as caller:
                if on_disk(point):  # what was there is there, whole
                    assert caller.fetch("on disk") == PAGES, "a page that was on disk is gone"
                for turn in range(TURNS):
                    caller.fetch(f"turn {turn}")
                caller.goes_on(server, "another")

    def stop_server(self, point, chance):
        with self._server(point, f"{point} {times(point, chance)} stop", on_disk(point)) as server:
            self._turns_until(server, lambda: server.stopped, point)
            self.seen.stalls[point] += 1
            server.resume()
            with self._caller(server.endpoint) as caller:
                caller.goes_on(server, "another")

    def kill_worker(self, point, chance):
        with self._server(point) as server, self._caller(server.endpoint) as watcher:
            before = watcher.held()
            with self._worker(server, point, times(point, chance), "kill") as worker:
                worker.send("turns", pages=PAGES, texts=[f"turn {turn}" for turn in range(TURNS)])
                status = worker.await_death()
                died = time.monotonic()
                assert status == -signal.SIGKILL, f"the worker ended with {status}"
                self.seen.kills[point] += 1
            server.wait_until(lambda: watcher.held() == before, "what the worker held comes back")
            self.seen.longest_back_s = max(self.seen.longest_back_s, time.monotonic() - died)
            for turn in range(TURNS):
                watcher.fetch(f"turn {turn}")
            watcher.clear()
            assert watcher.used() == 0, "memory is lost"
            watcher.goes_on(server, "another")

    def stop_worker(self, point, chance):
        """Its pages are wanted meanwhile: they go, and what it reads afterwards is right or nothing."""
        with self._server(point) as server, self._caller(server.endpoint) as watcher:
            with self._worker(server, point, times(point, chance), "stop") as worker:
                texts = [f"turn {turn}" for turn in range(TURNS)]
                worker.send("turns", pages=PAGES, texts=texts)
                worker.await_stop()
                self.seen.stalls[point] += 1
                for text in texts:
                    watcher.delete(text)
                watcher.flood(server)
                worker.resume()
                answer = worker.answer()
                self.seen.reads += TURNS
                self.seen.wrong += not answer["right"]
            for text in texts:
                watcher.fetch(text)

    def stall_line(self, call, chance):
        with self._server(call) as server, contextlib.closing(SlowProxy(server.endpoint)) as line:
            with self._caller(server.endpoint) as watcher, self._caller(line.endpoint) as caller:
                watcher.push("there")
                caller.fetch("there")  # so that there are connections
                before = watcher.held()
                calls = {"line.get": lambda: caller.fetch("there"), "line.put": lambda: caller.push("new"),
                         "line.lookup": lambda: caller.lookup("there"),
                         "line.session": lambda: caller.lookup("there", lease=True)}
                line.stall(after=chance.randrange({"line.get": 60_000, "line.put": 60_000}.get(call, 200)))
                for _ in range(4):
                    calls[call]()
                    if line.stalled:
                        break
                assert line.stalled, "the line did not stall"
                self.seen.stalls[call] += 1
                line.resume()
                caller.goes_on(server, "another")
            server.wait_until(lambda: self._same_but_sessions(server, before), "what the call held comes back")

    def _same_but_sessions(self, server, before):
        """Whether as much is held as then; the sessions of then have ended."""
        with self._caller(server.endpoint) as watcher:
            return watcher.held() == {**before, "sessions": 0}

    def run(self, action, point, chance):
        if action == "stall":
            return self.stall_line(point, chance)
        side = "worker" if ".client." in point else "server"
        return getattr(self, f"{action}_{side}")(point, chance)


def on_disk(point):
    return point.startswith("archive.")


def times(point, chance):
    """How often the process comes to the place until it happens: what a few turns do."""
    return 1 if on_disk(point) or ".session." in point else chance.randint(1, 6)


def plan(points, kills, seed):
    """Kills, half as many stalls of a process, and half of these of the line; each at every place before at one again."""
    chance = random.Random(seed)

    def turns(places, count):
        taken = []
        while len(taken) < count:
            taken += chance.sample(places, len(places))
        return taken[:count]

    return ([("kill", point) for point in turns(points, kills)] + [("stop", point) for point in turns(points, kills // 2)] +
            [("stall", call) for call in turns(LINE, kills // 4)])


def table(seen):
    found = seen.as_json()
    lines = [f"{'place':34} kills  stalls"]
    for point in sorted({*seen.kills, *seen.stalls}):
        lines.append(f"{point:34} {seen.kills[point]:5}  {seen.stalls[point]:6}")
    lines.append(f"kills {found['kills']}, stalls {found['stalls']}; pages were asked for {found['reads']} times, wrong: {found['wrong']}")
    lines.append(f"longest wait of {found['calls']} calls {found['longest_wait_s']:.3f} s (deadline {found['deadline_s']:.1f} s), "
                 f"longest until memory was back {found['longest_until_memory_was_back_s']:.3f} s")
    return "\n".join(lines)


def faults_of(seen):
    """What is not as it should be."""
    faults = []
    if seen.wrong:
        faults.append(f"{seen.wrong} reads brought wrong bytes")
    if seen.longest_wait_s > TIMEOUT_MS / 1000 + BEYOND_S:
        faults.append(f"a call took {seen.longest_wait_s:.3f} s")
    if seen.longest_back_s > BACK_S:
        faults.append(f"memory was back after {seen.longest_back_s:.3f} s only")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="0: one at random")
    parser.add_argument("--only", default="", help="places whose names have this")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--build-dir", type=pathlib.Path, default=ROOT / "build" / "dev")
    arguments = parser.parse_args()
    seed = arguments.seed or 1 + secrets.randbelow(1_000_000)
    print(f"--seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oscarkv_faults_") as folder:
        suite = Suite(arguments.build_dir.resolve(), folder)
        for number, (action, point) in enumerate(plan(points_of(ROOT), arguments.kills, seed)):
            if arguments.only not in point:
                continue
            try:
                suite.run(action, point, random.Random(f"{seed} {number}"))
            except BaseException:
                print(f"at {action} {point} (--seed {seed} --kills {arguments.kills} --only {point})", file=sys.stderr)
                raise
    print(table(suite.seen))
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": seed, **suite.seen.as_json()}, indent=1) + "\n")
    faults = faults_of(suite.seen)
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
