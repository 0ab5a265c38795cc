"""What a client does when its server dies, comes back, or stops answering: misses, within the deadline, and no exceptions."""

import concurrent.futures

import numpy as np
import oscarkv
import pytest
from support.worker_process import WorkerProcess
from worker import PAGE_TOKENS, SPEC, TRANSFORMS, Cache, keys_of

PAGES = 4
KEYS = keys_of(PAGES)
TIMEOUT_MS = 300


@pytest.fixture
def client(server):
    return oscarkv.Client(server.endpoint, timeout_ms=TIMEOUT_MS, control_timeout_ms=TIMEOUT_MS, breaker_failures=3,
                          breaker_pause_ms=50)


@pytest.fixture
def space(client):
    return client.open(SPEC, transforms=TRANSFORMS)


@pytest.fixture
def in_time():
    """Calls a function and fails when it takes far longer than any deadline of the client."""
    with concurrent.futures.ThreadPoolExecutor() as threads:
        yield lambda function, *arguments, **options: threads.submit(function, *arguments, **options).result(5)


def push(space):
    cache = Cache(seed=1)
    cache.fill(KEYS)
    return space.push(cache.kv, cache.slots(PAGES), KEYS)


def fetch(space, hit=None):
    """(report, whether nothing beyond the pages of the report was written)"""
    cache = Cache(seed=2)
    report = space.fetch(cache.kv, cache.slots(PAGES), KEYS, hit=hit)
    return report, bool(np.isnan(cache.rows(PAGES)[:, :, report.pages * PAGE_TOKENS:]).all())


def is_miss(report, untouched):
    return report.pages == 0 and report.statuses == ["MISS"] + ["SKIPPED"] * (PAGES - 1) and untouched


def test_server_that_dies_between_lookup_and_get(server, client, space, in_time):
    assert push(space).statuses == ["OK"] * PAGES
    hit = space.lookup(KEYS, lease=True)
    assert hit.pages == PAGES and hit.lease
    server.kill()
    report, untouched = in_time(fetch, space, hit)
    assert is_miss(report, untouched) and report.error
    in_time(hit.release)
    assert in_time(push, space).statuses == ["SKIPPED"] * PAGES

    server.start()  # on the same address, and empty
    found = server.wait_until(lambda: (hit := space.lookup(KEYS)).error == "" and hit, "the new server is found")
    assert found.pages == 0  # nothing of what the old server said is believed
    report, untouched = fetch(space)
    assert is_miss(report, untouched) and report.error == ""
    assert client.counters["reopens"] == 1
    assert push(space).statuses == ["OK"] * PAGES  # the transform set was uploaded again, too
    report, _ = fetch(space, hit)  # the old server's lease does no harm
    assert report.pages == PAGES


def test_server_that_stops_answering(server, client, space, in_time):
    push(space)
    server.stop()
    errors = [in_time(space.lookup, KEYS).error for _ in range(3)]
    assert [error.split(":")[0] for error in errors] == ["DEADLINE_EXCEEDED"] * 3
    # The breaker is open: calls do not even try, except for a probe now and then.
    server.wait_until(lambda: "did not answer lately" in in_time(space.lookup, KEYS).error, "the breaker is open")
    refused = client.counters["refused_by_breaker"]
    assert refused > 0
    report, untouched = in_time(fetch, space)
    assert is_miss(report, untouched)
    assert in_time(push, space).error
    server.resume()
    server.wait_until(lambda: space.lookup(KEYS).pages == PAGES, "the breaker closes again")
    refused = client.counters["refused_by_breaker"]
    assert fetch(space)[0].pages == PAGES
    assert client.counters["refused_by_breaker"] == refused


def test_push_of_more_than_the_socket_takes_ends_in_time(server, client, in_time):
    geometry = oscarkv.Geometry(layers=8, kv_heads=8, k_head_dim=128, page_tokens=64)
    space = client.open(oscarkv.NamespaceSpec("large", geometry, oscarkv.CodecSpec()))  # WIDE pages of 2 MiB
    keys = keys_of(8)
    rows = np.zeros((2, 8, len(keys) * 64, 8, 128), np.uint16)
    server.stop()
    report = in_time(space.push, oscarkv.PagedKv(*rows), np.arange(rows.shape[2]), keys)
    assert report.error and report.statuses == ["SKIPPED"] * len(keys)
    server.resume()
    server.wait_until(lambda: space.lookup(keys).error == "", "it answers")


@pytest.mark.parametrize("call", [
    lambda space: is_miss(*fetch(space)),
    lambda space: push(space).error != "",
    lambda space: space.lookup(KEYS).error != "",
    lambda space: space.lookup(KEYS, lease=True).error != "",
    lambda space: space.delete(KEYS) == ["MISS"] * PAGES,
], ids=["fetch", "push", "lookup", "lookup with lease", "delete"])
def test_server_that_never_answered(server, client, in_time, call):
    server.stop()  # the kernel takes the connection, and then there is silence
    space = in_time(client.open, SPEC, transforms=TRANSFORMS)
    assert in_time(call, space)
    server.resume()
    server.wait_until(lambda: space.lookup(KEYS, lease=True).lease or space.lookup(KEYS).error == "", "it answers")
    assert push(space).statuses == ["OK"] * PAGES


def test_server_that_is_not_there_when_the_client_starts(server, client, in_time):
    server.kill()
    space = in_time(client.open, SPEC, transforms=TRANSFORMS)
    assert in_time(space.lookup, KEYS).error.startswith("UNAVAILABLE")
    server.start()
    server.wait_until(lambda: space.lookup(KEYS).error == "", "the server is found")
    assert push(space).statuses == ["OK"] * PAGES


def test_dead_server_does_not_hold_up_the_end_of_a_worker(server):
    with WorkerProcess(server.endpoint, TIMEOUT_MS) as worker:
        assert worker.ask("push", pages=PAGES)["error"] == ""
        assert worker.ask("lookup", pages=PAGES, lease=True)["lease"]
        server.stop()
        worker.end()


def test_server_that_comes_back_is_found_by_the_next_few_calls(server):
    client = oscarkv.Client(server.endpoint, timeout_ms=TIMEOUT_MS, breaker_failures=1000)
    space = client.open(SPEC, transforms=TRANSFORMS)
    server.kill()
    for _ in range(5):
        assert space.lookup(KEYS).error
    server.start()
    assert any(space.lookup(KEYS).error == "" for _ in range(50))
