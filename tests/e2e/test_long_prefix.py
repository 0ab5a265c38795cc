"""A prefix that has gone to disk is extended: by a put of what follows it, whoever put it, and whenever."""

import numpy as np
import oscarkv
import pytest
from support.server_process import ServerProcess
from worker import PAGE_TOKENS, SPEC, TRANSFORMS, Cache, expected_rows, keys_of

PAGES, MORE = 24, 4
KEYS = keys_of(PAGES + MORE)


@pytest.fixture
def server(build_dir, tmp_path):
    disk = ["--disk-path", str(tmp_path / "tier"), "--disk-capacity", "600MiB"]
    process = ServerProcess(build_dir, "unix", disk, capacity="16MiB")
    yield process
    process.close()


def push(space, keys, first=0):
    """Puts the pages of `keys` from the page `first` on; what became of each."""
    cache = Cache(seed=1)
    cache.fill(keys)
    report = space.push(cache.kv, cache.slots(len(keys))[first * PAGE_TOKENS:], keys[first:],
                        parent=keys[first - 1] if first else b"", first_position=first * PAGE_TOKENS)
    return set(report.statuses)


def counter(client, name):
    return int(client.stats()["counters"][f"oscarkv_disk_{name}"])


def restart(server, client, space):
    server.kill()
    server.start()


def fill(server, client, space):
    others = 0
    while int(client.stats()["counters"]["oscarkv_removed_pages_total{reason=\"evicted\"}"]) < 10 * PAGES:
        others += 1
        push(space, keys_of(PAGES, f"others {others}"))  # as far as the policy takes them


@pytest.mark.parametrize("demote", [restart, fill])
def test_a_prefix_that_is_on_disk_only_is_extended(server, demote):
    client = oscarkv.Client(server.endpoint)
    space = client.open(SPEC, transforms=TRANSFORMS)
    assert push(space, KEYS[:PAGES]) == {"OK"}
    assert set(space.persist(KEYS[:PAGES]).statuses) == {"OK"}
    demote(server, client, space)
    client = oscarkv.Client(server.endpoint)
    space = client.open(SPEC, transforms=TRANSFORMS)
    assert space.lookup(KEYS).pages == PAGES
    assert push(space, KEYS, first=PAGES) == {"OK"}
    assert counter(client, "parent_loads_total{outcome=\"loaded\"}") == 1
    hit = space.lookup(KEYS)
    assert hit.pages == PAGES + MORE
    found = Cache(seed=2)
    report = space.fetch(found.kv, found.slots(len(KEYS)), KEYS)
    assert report.pages == PAGES + MORE
    np.testing.assert_array_equal(found.rows(len(KEYS)), expected_rows(KEYS, hit.encodings))
