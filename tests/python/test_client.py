"""The Python binding of the client: arrays in place, the interpreter lock released, misses and errors."""

import sys
import threading

import numpy as np
import oscarkv
import pytest

LAYERS, HEADS, DIM, PAGE_TOKENS = 2, 3, 32, 8
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="fp32")
TRANSFORMS = oscarkv.TransformSet.identity(GEOMETRY)
SPEC = oscarkv.NamespaceSpec("python", GEOMETRY, oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash, sink_tokens=0,
                                                                   recent_tokens=16))
KEYS = oscarkv.chain_keys(np.arange(4 * PAGE_TOKENS, dtype=np.uint32), PAGE_TOKENS)
PAGES = len(KEYS)
SLOTS = np.random.default_rng(3).permutation(64)[:PAGES * PAGE_TOKENS]


def token_major():
    return np.zeros((LAYERS, 64, HEADS, DIM), np.float32), lambda side: side


def blocks():
    return np.zeros((LAYERS, 16, 4, HEADS, DIM), np.float32), lambda side: side.reshape(LAYERS, 64, HEADS, DIM)


def heads_before_tokens():
    whole = np.zeros((LAYERS, 16, HEADS, 4, DIM), np.float32)
    return whole.transpose(0, 1, 3, 2, 4), lambda side: side.reshape(LAYERS, 64, HEADS, DIM)


def every_other_head_and_layer():
    return np.zeros((2 * LAYERS, 64, 2 * HEADS, DIM), np.float32)[1::2, :, ::2], lambda side: side


def part_of_each_row():
    return np.zeros((LAYERS, 64, HEADS, 3 * DIM), np.float32)[..., DIM:2 * DIM], lambda side: side


def slots_from_the_end():
    return np.zeros((LAYERS, 64, HEADS, DIM), np.float32)[:, ::-1], lambda side: side


LAYOUTS = [token_major, blocks, heads_before_tokens, every_other_head_and_layer, part_of_each_row, slots_from_the_end]


class Cache:
    """K and V in a layout; `rows` are [layers, slots, heads, dim]."""

    def __init__(self, layout=token_major, seed=None):
        (self.k, self._rows), (self.v, _) = layout(), layout()
        self._whole = [side if side.base is None else side.base for side in (self.k, self.v)]
        for side in (self.k, self.v):
            side[...] = np.nan if seed is None else np.random.default_rng(seed).normal(size=side.shape)
        self.kv = oscarkv.PagedKv(self.k, self.v)

    def rows(self, slots=slice(None)):
        return np.stack([self._rows(side)[:, slots] for side in (self.k, self.v)])

    def addresses(self):
        return [side.__array_interface__["data"] for side in (self.k, self.v)]

    def outside(self):
        """The numbers of the memory that are not the cache's."""
        taken = [np.zeros(whole.shape, bool) for whole in self._whole]
        total = 0
        for whole, side, mark in zip(self._whole, (self.k, self.v), taken):
            before = side.copy()
            side[...] = np.inf
            mark[...] = np.isinf(whole)
            side[...] = before
            total += np.abs(whole[~mark]).sum()
        return total


@pytest.fixture
def client(server):
    return oscarkv.Client(server.endpoint, timeout_ms=5000)


@pytest.fixture
def space(client):
    return client.open(SPEC, transforms=TRANSFORMS)


def push(space, cache=None):
    cache = cache or Cache(seed=1)
    return space.push(cache.kv, SLOTS, KEYS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_arrays_are_read_and_written_in_place(space, layout):
    source, destination = Cache(layout, seed=1), Cache(layout)
    before = source.addresses() + destination.addresses()
    assert push(space, source).statuses == ["OK"] * PAGES
    hit = space.lookup(KEYS)
    assert hit.encodings == ["packed"] * 2 + ["wide"] * 2
    report = space.fetch(destination.kv, SLOTS, KEYS)
    assert report.pages == PAGES and report.tokens == PAGES * PAGE_TOKENS
    assert source.addresses() + destination.addresses() == before
    wide, packed = SLOTS[2 * PAGE_TOKENS:], SLOTS[:2 * PAGE_TOKENS]
    assert np.array_equal(destination.rows(wide), source.rows(wide))
    error = np.abs(destination.rows(packed) - source.rows(packed))
    steps = np.ptp(source.rows(packed), axis=-1, keepdims=True) / 3  # of two bits
    assert (error <= 0.51 * steps).all()
    rest = np.setdiff1d(np.arange(64), SLOTS)
    assert np.isnan(destination.rows(rest)).all()
    assert source.outside() == destination.outside() == 0


def test_views_keep_their_arrays_alive():
    codec = oscarkv.PageCodec(GEOMETRY, SPEC.codec)
    cache = Cache(seed=1)
    expected = codec.encode(cache.kv, SLOTS[:PAGE_TOKENS], "wide")[0]
    kv = cache.kv
    del cache
    held = [np.full((LAYERS, 64, HEADS, DIM), 9, np.float32) for _ in range(8)]  # would take the place of freed arrays
    assert np.array_equal(codec.encode(kv, SLOTS[:PAGE_TOKENS], "wide")[0], expected) and held


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_other_dtypes_are_converted_on_the_way(space, dtype):
    push(space)
    k, v = np.zeros((2, LAYERS, 64, HEADS, DIM), dtype)
    assert space.fetch(oscarkv.PagedKv(k, v), SLOTS, KEYS).pages == PAGES
    found = (k.astype(np.uint32) << 16).view(np.float32) if dtype == np.uint16 else k
    wide = SLOTS[2 * PAGE_TOKENS:]
    assert np.allclose(found[:, wide], Cache(seed=1).rows(wide)[0], rtol=1 / 128, atol=1e-6)


SIDE = np.zeros((LAYERS, 64, HEADS, DIM), np.float32)


def read_only():
    array = SIDE.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("k, v, says", [
    (SIDE.astype(np.float64), SIDE, "k must be float32, float16 or uint16 .bf16., found float64"),
    (SIDE, SIDE.astype(np.int32), "v must be float32, float16 or uint16 .bf16., found int32"),
    (SIDE.astype(">f4"), SIDE, "k must be in the machine's byte order, found >f4"),
    (SIDE, SIDE[0], "v must be .layers, slots, heads, dim. or .* found 3 dimensions"),
    (SIDE[..., ::2], SIDE, "k: the last dimension must be contiguous"),
    (np.zeros((LAYERS, 64, DIM, HEADS), np.float32).swapaxes(2, 3), SIDE, "k: the last dimension must be contiguous"),
    (SIDE, read_only(), "v must be writeable"),
    (SIDE, SIDE[:, :63], "k and v must have the same slots, found 64 in blocks of 1 and 63 in blocks of 1"),
    (SIDE.reshape(LAYERS, 16, 4, HEADS, DIM), SIDE, "k and v must have the same slots, found 64 in blocks of 4 and 64"),
])
def test_arrays_that_cannot_be_a_cache(k, v, says):
    with pytest.raises(ValueError, match=says):
        oscarkv.PagedKv(k, v)


@pytest.mark.parametrize("k, v, says", [
    (SIDE[:, :, :2], SIDE, "k must have 3 heads of dim 32, found 2 of 32"),
    (SIDE, SIDE[..., :16], "v must have 3 heads of dim 32, found 3 of 16"),
    (SIDE[:1], SIDE, "K: layer base pointers must be 2, found 1"),
])
def test_caches_of_another_shape(space, k, v, says):
    kv = oscarkv.PagedKv(k, v)
    for call in (space.push, space.fetch):
        with pytest.raises(ValueError, match=says):
            call(kv, SLOTS, KEYS)


@pytest.mark.parametrize("call, says", [
    (lambda s, kv: s.push(kv, SLOTS[1:], KEYS), "4 pages of 8 tokens need 32 slots, found 31"),
    (lambda s, kv: s.fetch(kv, SLOTS + 64, KEYS), "slot of token 0 must be -1..63"),
    (lambda s, kv: s.fetch(kv, SLOTS * 1.5, KEYS), "slots must be integers, found float64"),
    (lambda s, kv: s.push(kv, [["a"]], KEYS), "slots must be integers"),
    (lambda s, kv: s.fetch(kv, SLOTS, KEYS, form="whole"), "form must be stored or decoded, found 'whole'"),
    (lambda s, kv: s.fetch(kv, SLOTS, KEYS, layers=(1, 3)), "layers 1 . 2 do not lie within 0..1"),
    (lambda s, kv: s.fetch(kv, SLOTS, KEYS, heads=(2, 2)), "heads must be .first, end. with first < end"),
    (lambda s, kv: s.lookup(KEYS, tail="leave"), "tail must be take or recompute, found 'leave'"),
    (lambda s, kv: s.lookup([b"short"]), "key 0: .*16"),
    (lambda s, kv: s.delete([b"x" * 65]), "key 0: .*64"),
])
def test_arguments_that_are_wrong(space, call, says):
    with pytest.raises(ValueError, match=says):
        call(space, Cache().kv)


@pytest.mark.parametrize("options, says", [
    ({"endpoint": "nowhere"}, "endpoint must be host:port or unix:/path, found 'nowhere'"),
    ({"timeout_ms": 0}, "timeouts must be positive"),
    ({"control_timeout_ms": -1}, "timeouts must be positive"),
    ({"attempts": 0}, "attempts"),
    ({"breaker_failures": 0}, "breaker.failures"),
    ({"breaker_pause_ms": 0}, "breaker.pause"),
])
def test_options_that_are_wrong(options, says):
    with pytest.raises(ValueError, match=says):
        oscarkv.Client(**options)


def test_shards_share_nothing():
    def fingerprint(**shard):
        return oscarkv.NamespaceSpec("python", GEOMETRY, SPEC.codec, **shard).fingerprint

    shards = [{}, {"tp_size": 2}, {"tp_size": 2, "tp_rank": 1}, {"pp_size": 2}, {"pp_size": 2, "pp_rank": 1},
              {"hash_scheme": "mine"}]
    assert len({fingerprint(**shard) for shard in shards}) == len(shards)
    with pytest.raises(ValueError, match="found tp 2/2"):
        fingerprint(tp_size=2, tp_rank=2)


def test_a_sequence_of_slots_will_do(space):
    cache = Cache(seed=1)
    assert space.push(cache.kv, SLOTS.tolist(), KEYS).statuses == ["OK"] * PAGES
    assert space.fetch(cache.kv, SLOTS.astype(np.uint32), KEYS).pages == PAGES


def test_a_part_of_the_layers_and_heads(space):
    source, destination = Cache(seed=1), Cache()
    push(space, source)
    report = space.fetch(destination.kv, SLOTS[16:], KEYS[2:], layers=(1, 2), heads=(0, 2))
    assert report.pages == 2
    found, expected = destination.rows(SLOTS[16:]), source.rows(SLOTS[16:])
    assert np.array_equal(found[:, 1, :, :2], expected[:, 1, :, :2])
    assert np.isnan(found[:, 0]).all() and np.isnan(found[:, 1, :, 2]).all()


def test_what_the_server_decodes_is_what_the_client_decodes(space):
    push(space)
    mine, servers = Cache(), Cache()
    stored = space.fetch(mine.kv, SLOTS, KEYS)
    decoded = space.fetch(servers.kv, SLOTS, KEYS, form="decoded")
    assert np.allclose(mine.rows(SLOTS), servers.rows(SLOTS), rtol=0, atol=1e-5)
    assert decoded.bytes_wire > stored.bytes_wire


def test_the_rest_of_a_namespace(client, space):
    assert space.spec.fingerprint == SPEC.fingerprint
    push(space)
    hit = space.lookup(KEYS, lease=True)
    assert hit.lease and int(client.stats()["leases"]) == 1
    hit.release()
    assert hit.lease == 0 and int(client.stats()["leases"]) == 0
    assert space.touch(KEYS) == ["OK"] * PAGES
    assert sorted(space.list()) == sorted(KEYS) and len(space.list(keys_max=2)) == 2
    assert space.delete(KEYS[2:3]) == ["OK"]
    assert space.lookup(KEYS).pages == 2  # what extends a page goes with it
    assert space.clear() == 2
    assert client.get_transform_set(TRANSFORMS.hash).to_bytes() == TRANSFORMS.to_bytes()
    assert client.counters["calls"] > 0 and client.counters["failures"] == 0


def test_a_lease_that_nobody_holds_is_released(client, space):
    push(space)
    hit = space.lookup(KEYS, lease=True)
    assert int(client.stats()["leases"]) == 1
    del hit
    assert int(client.stats()["leases"]) == 0


def test_leaving_the_block_of_a_client_ends_its_session(server):
    watcher = oscarkv.Client(server.endpoint)
    with oscarkv.Client(server.endpoint) as client:
        space = client.open(SPEC, transforms=TRANSFORMS)
        push(space)
        hit = space.lookup(KEYS, lease=True)
        assert int(watcher.stats()["leases"]) == 1
    server.wait_until(lambda: int(watcher.stats()["leases"]) == 0, "the lease ends with the session")
    assert space.lookup(KEYS).error == "CANCELLED: the client is closed"
    assert space.lookup(KEYS, lease=True).lease == 0 and hit.pages == PAGES


def test_a_dead_server_is_a_miss(server, client, space):
    push(space)
    hit = space.lookup(KEYS, lease=True)
    server.kill()
    cache = Cache()
    found = space.lookup(KEYS)
    assert (found.pages, found.usable_tokens, found.encodings, found.bytes, found.lease) == (0, 0, [], 0, 0)
    assert found.error.startswith("UNAVAILABLE: ")
    report = space.fetch(cache.kv, SLOTS, KEYS, hit=hit)
    assert (report.pages, report.tokens, report.statuses) == (0, 0, ["MISS"] + ["SKIPPED"] * 3) and report.error
    assert np.isnan(cache.rows()).all()
    pushed = push(space)
    assert pushed.statuses == ["SKIPPED"] * PAGES and pushed.error
    assert space.delete(KEYS) == space.touch(KEYS) == ["MISS"] * PAGES
    hit.release()
    client.open(SPEC, transforms=TRANSFORMS)
    for for_operators in (client.stats, space.list, space.clear):
        with pytest.raises(RuntimeError, match="UNAVAILABLE"):
            for_operators()


@pytest.fixture
def no_switching():
    """Threads run until they let go of the interpreter lock themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(before)


CALLS = {
    "lookup": lambda client, space, hit: space.lookup(KEYS).error == "",
    "lookup with lease": lambda client, space, hit: space.lookup(KEYS, lease=True).error == "",
    "fetch": lambda client, space, hit: space.fetch(Cache().kv, SLOTS, KEYS).error == "",
    "push": lambda client, space, hit: push(space).error == "",
    "delete": lambda client, space, hit: space.delete(KEYS[-1:]) == ["OK"],
    "touch": lambda client, space, hit: space.touch(KEYS) == ["OK"] * PAGES,
    "list": lambda client, space, hit: len(space.list()) == PAGES,
    "clear": lambda client, space, hit: space.clear() + 1,
    "stats": lambda client, space, hit: client.stats(),
    "open": lambda client, space, hit: client.open(SPEC, transforms=TRANSFORMS).lookup(KEYS).error == "",
    "put_transform_set": lambda client, space, hit: client.put_transform_set(TRANSFORMS) is None,
    "get_transform_set": lambda client, space, hit: client.get_transform_set(TRANSFORMS.hash),
    "release": lambda client, space, hit: hit.pop().release() is None,
    "collection of a lease": lambda client, space, hit: hit.clear() is None,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_other_threads_run_during_a_call(server, client, space, no_switching, call):
    """The server has stopped; only this thread can make it go on, and so let the call succeed."""
    push(space)
    hit = [space.lookup(KEYS, lease=True)]
    failures = client.counters["failures"]
    calling, result = threading.Event(), []

    def run():
        calling.set()
        result.append(call(client, space, hit))

    server.stop()
    thread = threading.Thread(target=run)
    thread.start()
    calling.wait()
    server.resume()
    thread.join()
    assert result and result[0]
    assert client.counters["failures"] == failures


def test_hints_go_with_pushes_fetches_and_touches(space):
    cache = Cache(seed=1)
    hints = oscarkv.RequestHints(reuse="will_return", priority=1, output_tokens=20, request_id=9)
    assert (hints.priority, hints.output_tokens, hints.request_id) == (1, 20, 9)
    assert space.push(cache.kv, SLOTS, KEYS, hints=hints).statuses == ["OK"] * PAGES
    fetched = space.fetch(Cache().kv, SLOTS, KEYS, hints=oscarkv.RequestHints(reuse="single_shot"))
    assert fetched.statuses == ["OK"] * PAGES
    for residency in ("pinned", "normal", "may_go_first"):
        assert space.touch(KEYS, hints=oscarkv.RequestHints(residency=residency)) == ["OK"] * PAGES
    assert space.touch(KEYS, oscarkv.RequestHints(reuse="session_over")) == ["OK"] * PAGES


@pytest.mark.parametrize("wrong", [{"reuse": "maybe"}, {"residency": "stuck"}, {"priority": 3}])
def test_hints_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        oscarkv.RequestHints(**wrong)


def test_advice_weighs_a_fetch_against_computing(space):
    cache = Cache(seed=1)
    space.push(cache.kv, SLOTS, KEYS)
    assert space.lookup(KEYS).advice == ""
    tokens = PAGES * PAGE_TOKENS
    assert space.lookup(KEYS, recompute=1e-3).advice == "load"
    assert space.lookup(KEYS, recompute=1e12).advice == "recompute"
    asked = []

    def slow(count):
        asked.append(count)
        return 1e9
    hit = space.lookup(KEYS, recompute=slow)
    assert hit.advice == "load" and asked[-1] == tokens
    assert hit.expected_ms > 0
    assert space.lookup(KEYS, recompute=lambda count: 0.0).advice == "recompute"
    assert space.fetch(Cache().kv, SLOTS, KEYS, hit=hit).pages == PAGES
    unknown = [bytes(32)]
    assert space.lookup(unknown, recompute=1.0).advice == ""
    for wrong in (0, -5.0, float("nan"), "fast"):
        with pytest.raises((ValueError, TypeError)):
            space.lookup(KEYS, recompute=wrong)


def test_what_the_cost_of_computing_raises_is_raised(space):
    def fails(_):
        raise KeyError("no model")
    with pytest.raises(KeyError, match="no model"):
        space.lookup(KEYS, recompute=fails)
