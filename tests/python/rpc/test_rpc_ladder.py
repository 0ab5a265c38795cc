"""The precision ladder: WIDE pages of a namespace with a transform set become PACKED, when it says so, and nobody reads wrong."""

import dataclasses

import grpc
import numpy as np
import pytest

from . import transforms
from .pages import PACKED, WIDE, Shape, key_of, wide_page
from .store import TIMEOUT_S, Session

SERVER = {"capacity": "16MiB", "metrics_listen": "127.0.0.1:0", "config": "{eviction: {policy: lru}, ladder: {free_share: 0.5}}"}
SHAPE = Shape()
KEYS = [key_of(f"page {i}") for i in range(6)]
PAGES = [wide_page(SHAPE, i) for i in range(6)]
SET = transforms.identity(SHAPE)  # once: equal sets may be saved as different bytes


def forms(space, keys=tuple(KEYS)):
    return [page.encoding for page in space.lookup(list(keys)).pages]


def rows(data):
    return np.frombuffer(bytes(data), "<f4")


@pytest.fixture
def ladder(open_space, v1):
    """Opens a namespace whose first page is a sink and whose tail is two pages, with its transform set."""
    def open_one(store_wide, upload=True, file=SET):
        space = open_space(transform_hash=transforms.hash_of(file), sink_tokens=1, recent_tokens=2 * SHAPE.tokens,
                           store_wide=store_wide)
        if upload:
            space.upload(file, transforms.hash_of(file))
        return space
    return open_one


def test_a_tail_is_re_encoded_once_it_is_outgrown(ladder, v1, server, eventually):
    space = ladder(v1.WIDE_TAIL)
    before, _ = server.metrics()
    assert [result.status for result in space.put_sequence(KEYS, PAGES)] == [v1.OK] * 6
    eventually(lambda: forms(space), [WIDE, PACKED, PACKED, PACKED, WIDE, WIDE])
    # Read as it is, and decoded: 2 bits of a row of normal values are off by a third or so.
    found, _ = space.get(KEYS)
    assert [len(data) for _, data in found] == [SHAPE.page_bytes(form) for form in forms(space)]
    assert bytes(found[0][1]) == PAGES[0].data and bytes(found[5][1]) == PAGES[5].data
    decoded, _ = space.get(KEYS, form=v1.DECODED)
    for (item, data), page, form in zip(decoded, PAGES, forms(space)):
        assert item.result.status == v1.OK
        error = np.linalg.norm(rows(data) - rows(page.data)) / np.linalg.norm(rows(page.data))
        assert error == 0 if form == WIDE else 0.1 < error < 0.6
    # Put again in either form, they are there.
    assert [result.status for result in space.put_sequence(KEYS, PAGES)] == [v1.EXISTS] * 6

    after, _ = server.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    freed = SHAPE.page_bytes(WIDE) - SHAPE.page_bytes(PACKED)
    assert grown['oscarkv_reencoded_pages_total{cause="outgrown"}'] == 3
    assert grown["oscarkv_reencode_freed_bytes_total"] == 3 * freed
    assert grown["oscarkv_reencode_cpu_seconds_total"] > 0
    assert grown['oscarkv_reencode_relative_error_count{side="k"}'] == 3
    assert 0.3 < grown['oscarkv_reencode_relative_error_sum{side="v"}'] < 1.8


def test_never_and_until_pressure(ladder, open_space, v1, eventually):
    space = ladder(v1.WIDE_UNTIL_PRESSURE)
    space.put_sequence(KEYS, PAGES)
    assert forms(space) == [WIDE] * 6
    space.cache.OpenNamespace(v1.OpenNamespaceRequest(spec=space.spec, store_wide=v1.WIDE_NEVER), timeout=TIMEOUT_S)
    eventually(lambda: forms(space), [WIDE] + [PACKED] * 5)


def test_when_memory_is_short_bits_go_before_pages(open_space, v1, server, eventually):
    shape = dataclasses.replace(SHAPE, layers=64, heads=8)  # 384 KiB WIDE, 64 KiB PACKED, in 16 MiB
    file = transforms.identity(shape)
    space = open_space(shape=shape, transform_hash=transforms.hash_of(file), store_wide=v1.WIDE_UNTIL_PRESSURE)
    space.upload(file, transforms.hash_of(file))
    page, keys = wide_page(shape, 1), [key_of(f"large {i}") for i in range(120)]

    def waiting():
        """Pages that wait to be re-encoded although memory is short."""
        samples, _ = server.metrics()
        [tier] = space.stats().tiers
        wide = sum(samples[f'oscarkv_wide_pages_waiting{{stage="{stage}"}}'] for stage in ("due", "past", "tail"))
        return wide > 0 and tier.used_bytes > tier.capacity_bytes / 2
    for key in keys:
        assert space.put([space.item(key, page)], [page.data], chunk_bytes=1 << 20)[0].status == v1.OK
        eventually(waiting, False)
    assert space.each(keys) == [v1.OK] * len(keys)
    samples, _ = server.metrics()
    assert samples['oscarkv_reencoded_pages_total{cause="pressure"}'] > 80
    assert samples['oscarkv_removed_pages_total{reason="evicted"}'] == 0 == samples["oscarkv_evicted_ahead_pages_total"]


def test_without_its_transform_set_a_namespace_stays_wide_and_says_so(ladder, v1, server, eventually):
    file = transforms.identity(SHAPE, k_clip_ratio=np.full((SHAPE.layers, 1), 0.8, np.float32))
    space = ladder(v1.WIDE_NEVER, upload=False, file=file)
    space.put_sequence(KEYS, PAGES)

    def can_pack():
        samples, _ = server.metrics()
        name = space.opened.fingerprint.hex()[:12]
        return [value for series, value in samples.items() if "can_pack" in series and name in series]
    assert can_pack() == [0] and forms(space) == [WIDE] * 6
    space.upload(file, transforms.hash_of(file))
    eventually(can_pack, [1])
    eventually(lambda: forms(space), [WIDE] + [PACKED] * 5)


def test_a_lease_keeps_pages_in_the_form_that_it_named(ladder, v1, eventually):
    space = ladder(v1.WIDE_UNTIL_PRESSURE)
    space.put_sequence(KEYS, PAGES)
    with Session(space) as session:
        leased = space.lookup(KEYS[:3], lease=True, session_id=session.id)
        space.cache.OpenNamespace(v1.OpenNamespaceRequest(spec=space.spec, store_wide=v1.WIDE_NEVER), timeout=TIMEOUT_S)
        eventually(lambda: forms(space), [WIDE] * 3 + [PACKED] * 3)
        found, _ = space.get(KEYS[:3], lease_id=leased.lease_id)
        assert [bytes(data) for _, data in found] == [page.data for page in PAGES[:3]]
        session.end()
    eventually(lambda: forms(space), [WIDE] + [PACKED] * 5)


def test_a_mode_that_is_none_is_refused(space, v1):
    with pytest.raises(grpc.RpcError) as refused:
        space.cache.OpenNamespace(v1.OpenNamespaceRequest(spec=space.spec, store_wide=9), timeout=TIMEOUT_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "store_wide must be one that this server knows, found 9" in refused.value.details()
