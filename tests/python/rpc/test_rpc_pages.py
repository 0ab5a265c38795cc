"""Pages in and out over stock gRPC: put, lookup, get in both forms and in parts."""

import pytest

from . import transforms
from .pages import PACKED, Shape, key_of, packed_page, wide_page, zero_page

SHAPE = Shape()


def test_opening_tells_sizes_and_limits(space):
    assert space.opened.wide_page_bytes == SHAPE.page_bytes(1)
    assert space.opened.packed_page_bytes == SHAPE.page_bytes(2)
    limits = space.opened.limits
    assert (limits.max_items, limits.max_chunk_bytes, limits.lease_ms_max) == (1024, 1 << 20, 600_000)
    assert (limits.max_inflight_bytes, limits.max_transform_set_bytes) == (8 << 20, 1 << 30)
    again = space.cache.OpenNamespace(space.v1.OpenNamespaceRequest(
        spec=space.spec, expected_fingerprint=space.opened.fingerprint))
    assert again.fingerprint == space.opened.fingerprint and len(again.fingerprint) == 32


def test_sequence_is_found_and_read_back(space):
    v1, keys = space.v1, [key_of(i) for i in range(5)]
    stored = [wide_page(SHAPE, i) for i in range(3)]
    assert [r.status for r in space.put_sequence(keys[:3], stored)] == [v1.OK] * 3
    hit = space.lookup(keys)
    assert hit.prefix_pages == 3 and hit.lease_id == 0 and hit.fetch_bytes == 3 * SHAPE.page_bytes(1)
    assert [(page.status, page.tier, page.first_position) for page in hit.pages] == [(v1.OK, v1.HOST, i * SHAPE.tokens)
                                                                                     for i in range(3)]
    assert hit.expected_fetch_ms > 0
    assert space.each([keys[4], keys[1]]) == [v1.MISS, v1.OK]
    found, end = space.get(keys)
    assert [item.result.status for item, _ in found] == [v1.OK] * 3 + [v1.MISS] * 2
    assert [bytes(data) for _, data in found[:3]] == [page.data for page in stored]
    assert [tuple(item.block_crc32c) for item, _ in found[:3]] == [page.crcs for page in stored]
    assert (end.items_delivered, end.bytes) == (3, 3 * SHAPE.page_bytes(1))


def test_get_stops_at_the_first_miss(space):
    page = wide_page(SHAPE, 0)
    space.put([space.item(key_of("there"), page)], [page.data])
    found, end = space.get([key_of("there"), key_of("gone"), key_of("there")], stop_at_first_miss=True)
    assert [item.result.status for item, _ in found] == [space.v1.OK, space.v1.MISS]
    assert end.items_delivered == 1


def test_put_again_is_success_and_needs_no_bytes(space):
    page = wide_page(SHAPE, 0)
    item = space.item(key_of("k"), page)
    assert space.put([item], [page.data])[0].status == space.v1.OK
    assert space.put([item], [page.data])[0].status == space.v1.EXISTS
    assert space.put([item], [None])[0].status == space.v1.EXISTS


def test_padding_is_not_what_the_writer_sent(packing):
    page, _ = packed_page(SHAPE, 0)
    dirty = bytearray(page.data)
    dirty[SHAPE.block_bytes(PACKED)] = 0xFF
    assert page.data[SHAPE.block_bytes(PACKED)] == 0  # between the blocks
    assert packing.put([packing.item(key_of("k"), page)], [bytes(dirty)])[0].status == packing.v1.OK
    assert bytes(packing.get([key_of("k")])[0][0][1]) == page.data


@pytest.mark.parametrize("layers, heads", [((0, 1), (0, 0)), ((2, 1), (0, 2)), ((1, 0), (1, 1)), ((0, 3), (1, 0)),
                                           ((0, 0), (0, 1)), ((1, 2), (0, 0))])
@pytest.mark.parametrize("form", ["STORED", "DECODED"])
def test_layer_and_head_ranges(packing, layers, heads, form):
    v1 = packing.v1
    packed, wide = packed_page(SHAPE, 3)
    assert packing.put([packing.item(key_of("k"), packed)], [packed.data])[0].status == v1.OK
    [(item, data)], end = packing.get([key_of("k")], form=v1.Form.Value(form), first_layer=layers[0], layers=layers[1],
                                      first_head=heads[0], heads=heads[1])
    selection = [range(first, first + count if count else every)
                 for (first, count), every in ((layers, SHAPE.layers), (heads, SHAPE.heads))]
    expected = packed if form == "STORED" else wide
    assert bytes(data) == expected.blocks(*selection)
    assert list(item.block_crc32c) == expected.block_crcs(*selection)
    assert item.bytes == end.bytes == len(data) and item.encoding == expected.encoding


def test_packed_pages_come_stored_and_decoded(packing):
    v1 = packing.v1
    packed, wide = packed_page(SHAPE, 7)
    assert packing.put([packing.item(key_of("p"), packed)], [packed.data])[0].status == v1.OK
    assert packing.lookup([key_of("p")]).pages[0].encoding == PACKED
    [(item, data)], _ = packing.get([key_of("p")])
    assert bytes(data) == packed.data and item.encoding == PACKED
    [(item, data)], _ = packing.get([key_of("p")], form=v1.DECODED)
    assert bytes(data) == wide.data and item.encoding == v1.WIDE and tuple(item.block_crc32c) == wide.crcs


def test_wide_pages_come_decoded_as_they_are(packing):
    page = wide_page(SHAPE, 1)
    packing.put([packing.item(key_of("w"), page)], [page.data])
    [(item, data)], _ = packing.get([key_of("w")], form=packing.v1.DECODED)
    assert bytes(data) == page.data and tuple(item.block_crc32c) == page.crcs


def test_sinks_are_wide(v1, open_space):
    file = transforms.identity(SHAPE)
    space = open_space(transform_hash=transforms.hash_of(file), sink_tokens=SHAPE.tokens + 1)
    space.upload(file, transforms.hash_of(file))
    packed, _ = packed_page(SHAPE, 0)
    result = space.put([space.item(key_of("k"), packed)], [packed.data])[0]
    assert result.status == v1.INVALID and "sink_tokens" in result.message


@pytest.mark.parametrize("asked, largest", [(0, 1 << 20), (1, 4096), (5000, 5000), (1 << 30, 1 << 20)])
def test_chunks_are_as_large_as_asked_for_within_the_limits(v1, open_space, asked, largest):
    shape = Shape(layers=12, heads=16, tokens=48)  # over 1 MiB, so that every limit shows
    space = open_space("chunking", shape=shape)
    page = zero_page(shape)
    assert space.put([space.item(key_of("k"), page)], [page.data], chunk_bytes=1 << 20)[0].status == v1.OK
    sizes = [len(reply.chunk.data) for reply in space.cache.Get(
        v1.GetRequest(scope=space.scope, keys=[key_of("k")], chunk_bytes=asked)) if reply.HasField("chunk")]
    assert sum(sizes) == shape.page_bytes(1)
    assert set(sizes[:-1]) == {largest} and 0 < sizes[-1] <= largest


def test_put_in_chunks_of_any_size(space):
    page = wide_page(SHAPE, 5)
    for size in (1000, 64, len(page.data)):
        item = space.item(key_of(size), page)
        assert space.put([item], [page.data], chunk_bytes=size)[0].status == space.v1.OK
        assert bytes(space.get([key_of(size)])[0][0][1]) == page.data
