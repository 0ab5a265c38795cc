"""What is left of a client that was killed, or whose line broke: nothing but the pages that it had stored whole."""

import numpy as np
import oscarkv
import pytest
from support.server_process import ServerProcess
from support.worker_process import WorkerProcess
from worker import PAGE_TOKENS, SPEC, TRANSFORMS, Cache, expected_rows, keys_of

PAGES = 3
KEYS = keys_of(PAGES)
WIDE_BYTES = oscarkv.PageCodec(SPEC.geometry, SPEC.codec, TRANSFORMS).page_bytes("wide")


@pytest.fixture(params=["127.0.0.1:0", "unix"])
def server(request, build_dir, tmp_path):
    """Takes chunks of 4 KiB at most, so that every page is many messages, and pages by no other path."""
    config = tmp_path / "oscarkvd.yaml"
    config.write_text("limits:\n  max_chunk: 4KiB\nshared_memory:\n  socket: \"off\"\n")
    process = ServerProcess(build_dir, request.param, ["--config", str(config)])
    yield process
    process.close()


@pytest.fixture
def space(watcher):
    return watcher.open(SPEC, transforms=TRANSFORMS)


def held(watcher):
    """What the server holds for somebody, or at all."""
    stats = watcher.stats()
    return {"sessions": int(stats["sessions"]), "leases": int(stats["leases"]), "in flight": int(stats["inflight_bytes"]),
            "used": sum(int(tier["used_bytes"]) for tier in stats["tiers"]),
            "leased": sum(int(tier["leased_bytes"]) for tier in stats["tiers"])}


def test_client_killed_in_the_middle_of_a_page(server, proxy, watcher, space):
    before = held(watcher)
    with WorkerProcess(proxy.endpoint, 60_000) as worker:
        assert worker.ask("push", pages=1, text="whole")["statuses"] == ["OK"]
        whole = held(watcher)
        proxy.pass_only(WIDE_BYTES // 2, "to_server")
        worker.send("push", pages=PAGES)
        during = server.wait_until(lambda: (now := held(watcher))["in flight"] and now, "half of the page has come")
        assert during["in flight"] == WIDE_BYTES and during["used"] > whole["used"] > before["used"]
        assert space.lookup(KEYS).pages == 0
        worker.kill()
    server.wait_until(lambda: held(watcher) == {**whole, "sessions": before["sessions"]},
                      "everything but the whole page comes back")
    assert space.lookup(KEYS).pages == 0
    assert space.lookup(keys_of(1, "whole")).pages == 1

    proxy.pass_all()
    with WorkerProcess(proxy.endpoint) as worker:
        assert worker.ask("push", pages=PAGES)["statuses"] == ["OK"] * PAGES
        assert worker.ask("lookup", pages=PAGES)["pages"] == PAGES
        assert worker.ask("fetch", pages=PAGES)["right"]


def test_leases_of_a_killed_client_come_back(server, watcher, space):
    with WorkerProcess(server.endpoint) as worker:
        sessions = held(watcher)["sessions"]
        assert worker.ask("push", pages=PAGES)["statuses"] == ["OK"] * PAGES
        before = {**held(watcher), "sessions": sessions}
        assert worker.ask("lookup", pages=PAGES, lease=True)["lease"]
        during = held(watcher)
        assert (during["sessions"], during["leases"]) == (before["sessions"] + 1, 1) and during["leased"]
        assert space.clear() == 0  # held
        worker.kill()
    server.wait_until(lambda: held(watcher) == before, "the session ends and its lease with it")
    assert space.clear() == PAGES


def test_answer_that_stops_in_the_middle_of_a_page(server, proxy, space):
    cache = Cache(seed=1)
    cache.fill(KEYS)
    encodings = ["wide", "packed", "wide"]
    assert space.push(cache.kv, cache.slots(PAGES), KEYS).statuses == ["OK"] * PAGES
    client = oscarkv.Client(proxy.endpoint, timeout_ms=500)
    behind = client.open(SPEC, transforms=TRANSFORMS)
    proxy.pass_only(WIDE_BYTES * 3 // 2, "to_client")  # the first two pages, and a part of the third
    cache = Cache(seed=2)
    report = behind.fetch(cache.kv, cache.slots(PAGES), KEYS)
    assert report.error.startswith("DEADLINE_EXCEEDED")
    assert report.statuses == ["OK", "OK", "MISS"] and report.tokens == 2 * PAGE_TOKENS
    rows = cache.rows(PAGES)
    assert np.array_equal(rows[:, :, :report.tokens], expected_rows(KEYS[:2], encodings[:2]))
    assert np.isnan(rows[:, :, report.tokens:]).all()
