"""A line that stalls or breaks, and a server that is killed, at places that a seed chose: whole pages or misses, within the
deadline, and nothing that is held afterwards."""

import concurrent.futures
import random
import time

import numpy as np
import oscarkv
import pytest
from support.server_process import ServerProcess
from worker import SPEC, TRANSFORMS, Cache, expected_rows, keys_of

PAGES = 6
KEYS = keys_of(PAGES)
TIMEOUT_MS = 400
SEEDS = range(8)
SEEN = {"kills": 0, "reads": 0, "wrong": 0, "longest wait, s": 0.0}  # of the whole file


@pytest.fixture(scope="module", autouse=True)
def summary(tell):
    yield
    tell("gRPC over broken lines and to killed servers", SEEN, TIMEOUT_MS)


@pytest.fixture
def server(build_dir, tmp_path):
    config = tmp_path / "oscarkvd.yaml"
    config.write_text("limits:\n  max_chunk: 4KiB\n")  # every page is many messages
    process = ServerProcess(build_dir, "127.0.0.1:0", ["--config", str(config)])
    yield process
    process.close()


@pytest.fixture(params=[1, 2])
def client(proxy, request):
    """Its fetches come over so many connections."""
    return oscarkv.Client(proxy.endpoint, timeout_ms=TIMEOUT_MS, control_timeout_ms=TIMEOUT_MS, breaker_failures=1000,
                          bulk_channels=request.param, bulk_part_bytes=1)


@pytest.fixture
def space(client):
    return client.open(SPEC, transforms=TRANSFORMS)


@pytest.fixture
def in_time():
    """Calls a function and fails when it takes far longer than any deadline of the client."""
    def call(function, *arguments, **options):
        start = time.monotonic()
        result = threads.submit(function, *arguments, **options).result(5)
        SEEN["longest wait, s"] = max(SEEN["longest wait, s"], time.monotonic() - start)
        return result

    with concurrent.futures.ThreadPoolExecutor() as threads:
        yield call


def push(space):
    cache = Cache(seed=1)
    cache.fill(KEYS)
    return space.push(cache.kv, cache.slots(PAGES), KEYS)


def fetch(space):
    cache = Cache(seed=2)
    return space.fetch(cache.kv, cache.slots(PAGES), KEYS), cache


def kill(server, proxy):
    server.kill()
    SEEN["kills"] += 1
    proxy.resume()


def assert_whole(report, cache, encodings):
    """The pages of the report are there, and no byte of any other."""
    rows = cache.rows(PAGES)
    right = np.isnan(rows[:, :, report.tokens:]).all()
    if report.pages:
        right &= np.array_equal(rows[:, :, :report.tokens], expected_rows(KEYS[:report.pages], encodings[:report.pages]))
    SEEN["reads"] += 1
    SEEN["wrong"] += not right
    assert right


def nothing_in_flight(watcher):
    return int(watcher.stats()["inflight_bytes"]) == 0


def bytes_of(proxy, call):
    before = proxy.passed
    call()
    return proxy.passed - before


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fetch_over_a_line_that_stalls(server, proxy, watcher, space, in_time, seed):
    assert push(space).statuses == ["OK"] * PAGES
    encodings = space.lookup(KEYS).encodings
    whole = bytes_of(proxy, lambda: fetch(space))
    proxy.stall(after=random.Random(seed).randrange(whole))
    report, cache = in_time(fetch, space)
    assert report.pages < PAGES and report.error
    assert_whole(report, cache, encodings)
    proxy.resume()
    server.wait_until(lambda: nothing_in_flight(watcher), "the server lets go")
    server.wait_until(lambda: fetch(space)[0].pages == PAGES, "fetches go on")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_push_over_a_line_that_stalls(server, proxy, watcher, space, in_time, seed):
    whole = bytes_of(proxy, lambda: push(space))
    space.delete(KEYS[:1])
    proxy.stall(after=random.Random(seed).randrange(whole))
    report = in_time(push, space)
    assert report.error or report.statuses != ["OK"] * PAGES
    proxy.resume()
    server.wait_until(lambda: nothing_in_flight(watcher), "the server lets go")
    elsewhere = watcher.open(SPEC, transforms=TRANSFORMS)
    there = elsewhere.lookup(KEYS)
    found, cache = fetch(elsewhere)
    assert found.pages == there.pages
    assert_whole(found, cache, there.encodings)
    server.wait_until(lambda: not push(space).error, "pushes go on")


def test_a_push_that_is_stuck_does_not_hold_up_other_calls(server, proxy, client, in_time):
    geometry = oscarkv.Geometry(layers=8, kv_heads=8, k_head_dim=128, page_tokens=64)
    large = client.open(oscarkv.NamespaceSpec("large", geometry, oscarkv.CodecSpec()))  # WIDE pages of 2 MiB
    keys = keys_of(8)
    rows = np.zeros((2, 8, len(keys) * 64, 8, 128), np.uint16)
    kv, slots = oscarkv.PagedKv(*rows), np.arange(rows.shape[2])
    assert large.lookup(keys).error == ""
    proxy.stall()
    assert in_time(large.push, kv, slots, keys).error  # more than sockets take: gRPC cannot let go of it
    assert in_time(large.lookup, keys).error
    assert in_time(large.fetch, kv, slots, keys).error
    assert in_time(large.push, kv, slots, keys).error
    proxy.resume()
    server.wait_until(lambda: large.lookup(keys).error == "", "it answers again")


def test_small_calls_do_not_wait_for_a_line_that_is_full(server, proxy, in_time):
    client = oscarkv.Client(proxy.endpoint, timeout_ms=200, control_timeout_ms=TIMEOUT_MS, breaker_failures=1000)
    space = client.open(SPEC, transforms=TRANSFORMS)
    keys = [number.to_bytes(64, "big") for number in range(1000)]
    assert space.lookup(keys, lease=True).error == ""
    proxy.stall()
    with concurrent.futures.ThreadPoolExecutor(16) as threads:  # 13 MB: more than sockets take
        hits = [threads.submit(in_time, space.lookup, keys, lease=True) for _ in range(200)]
        assert all(hit.result().error for hit in hits)
    with pytest.raises(RuntimeError):
        in_time(client.stats)
    assert in_time(space.touch, keys) == ["MISS"] * len(keys)
    in_time(client.close)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_killed_in_the_middle_of_a_fetch(server, proxy, space, in_time, seed):
    assert push(space).statuses == ["OK"] * PAGES
    encodings = space.lookup(KEYS).encodings
    whole = bytes_of(proxy, lambda: fetch(space))
    proxy.stall(after=random.Random(100 + seed).randrange(whole))
    cache = Cache(seed=2)
    pending = space.start_fetch(cache.kv, cache.slots(PAGES), KEYS, layers_at_once=0)
    server.wait_until(lambda: proxy.stalled or pending.done, "it is at the place")
    kill(server, proxy)
    assert_whole(in_time(pending.result, timeout_ms=5000), cache, encodings)
    server.start()
    server.wait_until(lambda: space.lookup(KEYS).error == "", "the new server is found")
    assert push(space).statuses == ["OK"] * PAGES


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_killed_in_the_middle_of_a_push(server, proxy, client, space, in_time, seed):
    whole = bytes_of(proxy, lambda: push(space))
    space.delete(KEYS[:1])
    proxy.stall(after=random.Random(200 + seed).randrange(whole))
    cache = Cache(seed=1)
    cache.fill(KEYS)
    assert space.push_later(cache.kv, cache.slots(PAGES), KEYS)
    server.wait_until(lambda: proxy.stalled or client.wait_pushes(timeout_ms=0), "it is at the place")
    kill(server, proxy)
    assert in_time(client.wait_pushes, timeout_ms=5000)
    server.start()
    server.wait_until(lambda: space.lookup(KEYS).error == "", "the new server is found")
    assert space.lookup(KEYS).pages == 0
    assert push(space).statuses == ["OK"] * PAGES
    report, cache = fetch(space)
    assert report.pages == PAGES
    assert_whole(report, cache, space.lookup(KEYS).encodings)
