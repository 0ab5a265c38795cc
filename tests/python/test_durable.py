"""Pages that a worker wants durable, and the settings of a namespace, from Python."""

import numpy as np
import oscarkv
import pytest
from support.server_process import ServerProcess

LAYERS, HEADS, DIM, PAGE_TOKENS = 2, 2, 32, 8
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="fp32")
TRANSFORMS = oscarkv.TransformSet.identity(GEOMETRY)
SPEC = oscarkv.NamespaceSpec("python", GEOMETRY, oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash, sink_tokens=0,
                                                                   recent_tokens=16))
PAGES = 4
KEYS = oscarkv.chain_keys(np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32), PAGE_TOKENS)
SLOTS = np.arange(PAGES * PAGE_TOKENS)
DURABLE = ("--disk-capacity", "600MiB")


@pytest.fixture
def start(build_dir, tmp_path):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    started = []

    def run(*arguments):
        started.append(ServerProcess(build_dir, "unix", arguments))
        return started[-1]
    yield run
    for server in started:
        server.close()


def push(space):
    k, v = np.random.default_rng(1).normal(size=(2, LAYERS, len(SLOTS), HEADS, DIM)).astype(np.float32)
    assert space.push(oscarkv.PagedKv(k, v), SLOTS, KEYS).statuses == ["OK"] * PAGES
    return k, v


def test_durable_pages_are_there_after_kill_9(start, tmp_path):
    server = start("--disk-path", str(tmp_path / "tier"), *DURABLE)
    client = oscarkv.Client(server.endpoint, timeout_ms=5000)
    space = client.open(SPEC, transforms=TRANSFORMS)
    k, v = push(space)
    report = space.persist(KEYS[2:3] + [b"x" * 32], timeout_ms=60000)
    assert report.statuses == ["OK", "MISS"] and not report.durable and report.error == ""
    assert space.persist(KEYS, timeout_ms=60000).durable
    server.kill()
    server.start()
    found = np.zeros_like(k), np.zeros_like(v)
    server.wait_until(lambda: space.lookup(KEYS).pages == PAGES, "the client finds the server again")
    assert space.fetch(oscarkv.PagedKv(*found), SLOTS, KEYS).pages == PAGES
    wide = slice(2 * PAGE_TOKENS, None)
    assert np.array_equal(found[0][:, wide], k[:, wide]) and np.array_equal(found[1][:, wide], v[:, wide])


def test_without_a_disk_nothing_is_durable(start):
    server = start()
    space = oscarkv.Client(server.endpoint, timeout_ms=5000).open(SPEC, transforms=TRANSFORMS)
    push(space)
    report = space.persist(KEYS)
    assert report.error.startswith("FAILED_PRECONDITION") and "no disk tier" in report.error
    assert report.statuses == ["SKIPPED"] * PAGES and not report.durable
    server.kill()
    report = space.persist(KEYS, timeout_ms=1000)  # and a dead one is no exception
    assert report.error and report.statuses == ["SKIPPED"] * PAGES


def test_wide_pages_stay_so_for_as_long_as_the_namespace_says(start):
    client = oscarkv.Client(start().endpoint, timeout_ms=5000)
    space = client.open(SPEC, transforms=TRANSFORMS, store_wide="until_pressure")
    push(space)
    assert space.lookup(KEYS).encodings == ["packed"] * 2 + ["wide"] * 2
    never = client.open(SPEC, transforms=TRANSFORMS, store_wide="never")
    while never.lookup(KEYS).encodings != ["packed"] * PAGES:
        assert never.lookup(KEYS).pages == PAGES


def test_pages_that_nobody_uses_go_after_their_time(start):
    server = start()
    client = oscarkv.Client(server.endpoint, timeout_ms=5000)
    space = client.open(SPEC, transforms=TRANSFORMS, page_ttl_ms=1000)
    push(space)
    server.wait_until(lambda: space.lookup(KEYS).pages == 0, "the pages go")
    push(space)  # said once, it holds for whoever opens the namespace later
    client.open(SPEC, transforms=TRANSFORMS)
    server.wait_until(lambda: space.lookup(KEYS).pages == 0, "the pages go again")


@pytest.mark.parametrize("wrong, says", [({"store_wide": "always"}, "store_wide must be one of"),
                                         ({"page_ttl_ms": -1}, "page_ttl")])
def test_settings_that_are_none_are_refused(start, wrong, says):
    client = oscarkv.Client(start().endpoint)
    with pytest.raises(ValueError, match=says):
        client.open(SPEC, transforms=TRANSFORMS, **wrong)


def test_a_transform_set_that_is_needed_stays(start):
    client = oscarkv.Client(start().endpoint, timeout_ms=5000)
    other = oscarkv.TransformSet.hadamard(GEOMETRY)
    client.put_transform_set(other)
    client.open(SPEC, transforms=TRANSFORMS)
    with pytest.raises(ValueError, match="is needed to read the pages of the namespaces"):
        client.delete_transform_set(TRANSFORMS.hash)
    assert client.delete_transform_set(other.hash) is True
    assert client.delete_transform_set(other.hash) is False
