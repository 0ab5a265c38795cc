"""Workers and servers that die or stall at every step of a transfer by shared memory: whole pages or misses, never others'
bytes; and what a worker held comes back."""

import concurrent.futures
import itertools
import random
import time

import numpy as np
import oscarkv
import pytest
from support import shared_memory
from support.server_process import ServerProcess
from support.worker_process import WorkerProcess
from worker import SPEC, TRANSFORMS, Cache, encodings_of, expected_rows, keys_of

PAGES, LONG = 6, 30
KEYS = keys_of(PAGES)
TIMEOUT_MS = 2000
FETCHING, PUSHING = ("shm.client.mapped", "shm.client.read"), ("shm.client.staged", "shm.client.committed")
SERVING = tuple(f"shm.server.{step}" for step in ("accepted", "greeted", "welcomed", "pinned", "mapped", "released", "copied",
                                                  "committed", "fenced"))
SEEN = {"kills": 0, "stalls": 0, "reads": 0, "wrong": 0, "longest wait, s": 0.0, "longest until memory was back, s": 0.0}


@pytest.fixture(scope="module", autouse=True)
def summary(tell):
    yield
    tell("shared memory, deaths and stalls at every step", SEEN, TIMEOUT_MS)


@pytest.fixture
def start(build_dir, tmp_path):
    """Starts an oscarkvd that moves pages by shared memory alone."""
    started = []

    def one(config="", **options):
        path = tmp_path / "oscarkvd.yaml"
        path.write_text(shared_memory.CONFIG + config)
        started.append(ServerProcess(build_dir, "unix", ["--config", str(path)], **options))
        return started[-1]

    yield one
    for server in started:
        server.close()


@pytest.fixture
def faulty(build_dir):
    """A worker that stops at a named place."""
    def one(endpoint, fault):
        return WorkerProcess(endpoint, 60_000, environment={"PYTHONPATH": str(build_dir / "python_faults"), "OSCARKV_FAULT": fault})
    return one


def open_space(server):
    return oscarkv.Client(server.endpoint, timeout_ms=TIMEOUT_MS, breaker_failures=1000).open(SPEC, transforms=TRANSFORMS)


def push(space, keys=KEYS):
    cache = Cache(seed=1)
    cache.fill(keys)
    return space.push(cache.kv, cache.slots(len(keys)), keys)


def fetch(space, keys=KEYS):
    """The report of a fetch whose pages, and nothing else, are there as they should be."""
    cache = Cache(seed=2)
    report = space.fetch(cache.kv, cache.slots(len(keys)), keys)
    rows = cache.rows(len(keys))
    right = np.isnan(rows[:, :, report.tokens:]).all()
    if report.pages:
        right &= np.array_equal(rows[:, :, :report.tokens], expected_rows(keys[:report.pages], encodings_of(len(keys))[:report.pages]))
    SEEN["reads"] += 1
    SEEN["wrong"] += not right
    assert right
    return report


def used(space_client):
    return sum(int(tier["used_bytes"]) for tier in space_client.stats()["tiers"])


def held(server, watcher):
    """What the server holds, and maps for others."""
    stats = watcher.stats()
    return {"sessions": int(stats["sessions"]), "in flight": int(stats["inflight_bytes"]), "used": used(watcher),
            **shared_memory.regions(server.pid)}


def await_back(server, watcher, before):
    start = time.monotonic()
    server.wait_until(lambda: held(server, watcher) == before, "what the worker held comes back")
    key = "longest until memory was back, s"
    SEEN[key] = max(SEEN[key], time.monotonic() - start)


@pytest.mark.parametrize("point", FETCHING)
def test_a_worker_killed_while_it_reads(start, faulty, point):
    server = start()
    watcher = oscarkv.Client(server.endpoint)
    before = held(server, watcher)
    with faulty(server.endpoint, f"{point} 1 stop") as worker:
        assert worker.ask("push", pages=PAGES)["path"] == "shm"
        worker.send("fetch", pages=PAGES)
        worker.await_stop()
        space = watcher.open(SPEC, transforms=TRANSFORMS)
        assert space.delete(KEYS)[0] == "OK"  # and what extends it
        during = held(server, watcher)
        assert (during["fence"], during["staging"], during["sessions"]) == (2, 1, 1)
        assert during["used"] > before["used"]  # nobody else is given what the worker reads
        worker.kill()
        SEEN["kills"] += 1
    await_back(server, watcher, before)


@pytest.mark.parametrize("point", PUSHING)
def test_a_worker_killed_while_it_pushes(start, faulty, point):
    server = start()
    watcher = oscarkv.Client(server.endpoint)
    before = held(server, watcher)
    with faulty(server.endpoint, f"{point} 1 stop") as worker:
        worker.send("push", pages=PAGES)
        worker.await_stop()
        during = held(server, watcher)
        assert (during["fence"], during["staging"], during["sessions"]) == (1, 1, 1)
        worker.kill()
        SEEN["kills"] += 1
    await_back(server, watcher, {**before, "used": during["used"]})
    report = fetch(watcher.open(SPEC, transforms=TRANSFORMS))
    assert report.pages == (PAGES if point.endswith("committed") else 0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("point", SERVING)
def test_a_server_killed_at_any_step(start, point, seed):
    times = random.Random(f"{point} {seed}").randint(1, 4)
    server = start(fault=f"{point} {times} kill")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        def in_time(function, *arguments):
            begin = time.monotonic()
            result = threads.submit(function, *arguments).result(30)
            SEEN["longest wait, s"] = max(SEEN["longest wait, s"], time.monotonic() - begin)
            return result

        for turn in itertools.count():
            assert turn <= times, "every turn has every step at least once"
            keys = keys_of(PAGES, f"turn {turn}")
            space = open_space(server)  # and the connections of the one before end
            pushed = in_time(push, space, keys)
            report = in_time(fetch, space, keys)
            if server.ended:
                break
            assert pushed.statuses == ["OK"] * PAGES and report.pages == PAGES
    SEEN["kills"] += 1
    server.kill()
    server.start()
    server.wait_until(lambda: space.lookup(KEYS).error == "", "the new server is found")
    assert fetch(space, keys).pages == 0
    assert push(space, keys).path == "shm"
    again = fetch(space, keys)
    assert (again.pages, again.path) == (PAGES, "shm")


def evicted(watcher):
    return int(watcher.stats()["counters"]['oscarkv_removed_pages_total{reason="evicted"}'])


def overwrite(server, watcher, pages):
    """Puts texts that nobody asks for until so many pages more have had to go for them."""
    space, texts, before = watcher.open(SPEC, transforms=TRANSFORMS), itertools.count(), evicted(watcher)

    def one_more():
        assert push(space, keys_of(30, f"{server.pid} {before} {next(texts)}")).error == ""
        return evicted(watcher) >= before + pages

    server.wait_until(one_more, "other pages are in every place")


@pytest.mark.parametrize("point", FETCHING)
def test_a_worker_that_stalls_while_its_pages_are_wanted(start, faulty, point):
    server = start("limits:\n  lease_ms_max: 300\n", capacity="16MiB")
    watcher = oscarkv.Client(server.endpoint)
    with faulty(server.endpoint, f"{point} 1 stop") as worker:
        assert worker.ask("push", pages=PAGES)["path"] == "shm"
        worker.ask("lookup", pages=PAGES)
        worker.send("fetch", pages=PAGES)
        worker.await_stop()
        assert shared_memory.regions(server.pid)["fence"] == 2
        overwrite(server, watcher, pages=1)
        server.wait_until(lambda: shared_memory.regions(server.pid)["fence"] == 1, "the server takes the pages back")
        overwrite(server, watcher, pages=1500)  # every place is another page's
        worker.resume()
        fetched = worker.answer()
        assert fetched["pages"] == (PAGES if point == "shm.client.read" else 0)  # what was read is read
        SEEN["stalls"] += 1
        SEEN["reads"] += 1
        SEEN["wrong"] += not fetched["right"]
        assert fetched["right"] and fetched["untouched"]
        # The worker goes on, with a new connection.
        worker.ask("push", pages=PAGES)
        worker.ask("lookup", pages=PAGES)
        fetched = worker.ask("fetch", pages=PAGES)
        assert fetched["pages"] == PAGES and fetched["right"] and fetched["path"] == "shm"


def test_a_worker_stopped_where_it_happens_to_be(start):
    server, chance = start("limits:\n  lease_ms_max: 20\n", capacity="16MiB"), random.Random(7)
    watcher = oscarkv.Client(server.endpoint)
    space = watcher.open(SPEC, transforms=TRANSFORMS)
    overwrite(server, watcher, pages=1)
    total, stops, caught = {"pages": 0, "fenced": 0, "wrong": 0}, 0, 0
    with WorkerProcess(server.endpoint, 60_000) as worker:
        worker.ask("fetch_often", pages=LONG, times=1)
        links = shared_memory.regions(server.pid)["fence"]
        while caught < 3:
            assert stops < 400, "it is never in the middle of a read"
            worker.send("fetch_often", pages=LONG, times=10)
            worker.answers_within(chance.uniform(0, 0.03))
            worker.stop()
            stops += 1
            space.delete(keys_of(LONG)[:1])
            overwrite(server, watcher, pages=100)
            if shared_memory.regions(server.pid)["fence"] < links:  # taken back
                caught += 1
                overwrite(server, watcher, pages=400)
            worker.resume()
            for name, count in worker.answer().items():
                total[name] += count
    SEEN["stalls"] += stops
    SEEN["reads"] += stops * 10
    SEEN["wrong"] += total["wrong"]
    assert total["wrong"] == 0 and total["pages"] > 0 and total["fenced"] > 0
