"""Fetches that come layer by layer, and pushes that nobody waits for."""

import select

import numpy as np
import oscarkv
import pytest
from test_client import GEOMETRY, KEYS, LAYERS, PAGES, SLOTS, SPEC, TRANSFORMS, Cache

SOON_MS = 60_000


@pytest.fixture
def client(server):
    return oscarkv.Client(server.endpoint, timeout_ms=5000)


@pytest.fixture
def space(client):
    return client.open(SPEC, transforms=TRANSFORMS)


def test_layers_come_one_after_the_other(space):
    assert space.push(Cache(seed=1).kv, SLOTS, KEYS).statuses == ["OK"] * PAGES
    whole, layered = Cache(), Cache()
    space.fetch(whole.kv, SLOTS, KEYS)
    fetch = space.start_fetch(layered.kv, SLOTS, KEYS, layers_at_once=1)
    for layer in range(LAYERS):
        assert fetch.wait_layer(layer, timeout_ms=SOON_MS) == PAGES
        assert np.array_equal(layered.rows(SLOTS)[:, layer], whole.rows(SLOTS)[:, layer])
    report = fetch.result(timeout_ms=SOON_MS)
    assert (report.pages, report.error, fetch.done) == (PAGES, "", True)
    assert fetch.wait_layer(LAYERS) == 0  # there is no such layer


def test_a_descriptor_tells_of_layers_and_of_the_end(space):
    space.push(Cache(seed=1).kv, SLOTS, KEYS)
    fetch = space.start_fetch(Cache().kv, SLOTS, KEYS)
    assert select.select([fetch], [], [], SOON_MS / 1000)[0] == [fetch]
    fetch.result(timeout_ms=SOON_MS)
    assert select.select([fetch.fileno()], [], [], 0)[0]


def test_some_layers_and_heads(space):
    space.push(Cache(seed=1).kv, SLOTS, KEYS)
    cache = Cache()
    fetch = space.start_fetch(cache.kv, SLOTS, KEYS, layers=(1, 2), heads=(0, 1))
    assert fetch.result(timeout_ms=SOON_MS).pages == PAGES
    assert fetch.wait_layer(1) == PAGES and fetch.wait_layer(0) == 0
    assert np.isnan(cache.rows(SLOTS)[:, 0]).all() and not np.isnan(cache.rows(SLOTS)[:, 1, :, :1]).any()


def test_what_is_not_there_is_a_miss(space):
    fetch = space.start_fetch(Cache().kv, SLOTS, KEYS)
    assert fetch.wait_layer(0, timeout_ms=SOON_MS) == 0
    assert fetch.result(timeout_ms=SOON_MS).statuses == ["MISS"] + ["SKIPPED"] * (PAGES - 1)


def test_a_fetch_from_a_server_that_has_stopped_is_cancelled(server):
    client = oscarkv.Client(server.endpoint, timeout_ms=SOON_MS)
    space = client.open(SPEC, transforms=TRANSFORMS)
    space.push(Cache(seed=1).kv, SLOTS, KEYS)
    server.stop()
    cache = Cache()
    fetch = space.start_fetch(cache.kv, SLOTS, KEYS)
    with pytest.raises(TimeoutError):
        fetch.wait_layer(0, timeout_ms=0)
    with pytest.raises(TimeoutError):
        fetch.result(timeout_ms=0)
    fetch.cancel()
    assert fetch.result(timeout_ms=SOON_MS // 2).error.startswith("CANCELLED")
    assert np.isnan(cache.rows()).all()
    del fetch
    server.resume()
    assert space.fetch(cache.kv, SLOTS, KEYS).pages == PAGES


def test_misuse_arrives_at_once_or_with_the_result(space):
    with pytest.raises(ValueError):
        space.start_fetch(Cache().kv, SLOTS[1:], KEYS).result(timeout_ms=SOON_MS)
    with pytest.raises(ValueError):
        space.push_later(Cache(seed=1).kv, SLOTS[1:], KEYS)


def test_pushes_that_nobody_waits_for(client, space):
    assert space.push_later(Cache(seed=1).kv, SLOTS, KEYS)  # the arrays are kept alive
    assert client.wait_pushes(timeout_ms=SOON_MS)
    assert space.lookup(KEYS).pages == PAGES
    assert client.counters["pushes_dropped"] == 0


def test_pushes_beyond_the_queue_are_dropped_and_counted(server):
    page_bytes = oscarkv.PageCodec(GEOMETRY, SPEC.codec, TRANSFORMS).page_bytes("wide")
    client = oscarkv.Client(server.endpoint, timeout_ms=SOON_MS, push_queue_bytes=2 * PAGES * page_bytes)
    space = client.open(SPEC, transforms=TRANSFORMS)
    server.stop()
    kv = Cache(seed=1).kv
    assert [space.push_later(kv, SLOTS, KEYS) for _ in range(4)] == [True, True, False, False]
    assert not client.wait_pushes(timeout_ms=0)
    counters = client.counters
    assert (counters["pushes_dropped"], counters["pages_dropped"], counters["bytes_dropped"]) == (
        2, 2 * PAGES, 2 * PAGES * page_bytes)
    server.resume()
    assert client.wait_pushes(timeout_ms=SOON_MS)
    assert space.lookup(KEYS).pages == PAGES
