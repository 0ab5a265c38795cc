"""Puts that are wrong, cut off or too much: a typed error or an honest status, nothing kept, and the server goes on."""

import queue

import grpc
import pytest

from .pages import Shape, key_of, wide_page, zero_page
from .store import error_of, held

SHAPE = Shape()
SERVER = {"capacity": "16MiB", "config": "limits: {max_items: 8, max_chunk: 4KiB, max_inflight: 1MiB}"}


@pytest.fixture
def page():
    return wide_page(SHAPE, 0)


@pytest.fixture(autouse=True)
def goes_on(space, page):
    """After what the test does, the server still serves."""
    yield
    found = [r.status for r in space.put([space.item(key_of("afterwards"), page)], [page.data], chunk_bytes=4096)]
    assert found == [space.v1.OK] and bytes(space.get([key_of("afterwards")])[0][0][1]) == page.data


def put_fails(space, items, datas=(), **options):
    return error_of(lambda: space.put(items, datas or [None] * len(items), **options))


def test_wrong_page_size(space, page):
    item = space.item(key_of("k"), page)
    item.bytes -= 64
    [result] = space.put([item], [page.data[:-64]])
    assert result.status == space.v1.INVALID
    assert f"expected {SHAPE.page_bytes(1)} bytes" in result.message and f"found {item.bytes}" in result.message
    assert space.each([key_of("k")]) == [space.v1.MISS]


@pytest.mark.parametrize("key, found", [(b"", "found 0"), (b"k" * 15, "found 15"), (b"k" * 65, "found 65"),
                                        (b"k" * 100_000, "found 100000")])
def test_keys_of_the_wrong_length(space, page, key, found):
    good = space.item(key_of("good"), page)
    bad, good_result = space.put([space.item(key, page), good], [page.data, page.data])
    assert bad.status == space.v1.INVALID and found in bad.message
    assert good_result.status == space.v1.OK


def test_key_twice_in_one_put(space, page):
    item = space.item(key_of("k"), page)
    code, message = put_fails(space, [item, item], [page.data, page.data])
    assert code == "INVALID_ARGUMENT" and key_of("k").hex() in message and "twice" in message
    assert space.each([key_of("k")]) == [space.v1.MISS]


def test_checksum_that_lies(space, page):
    item = space.item(key_of("k"), page)
    item.block_crc32c[4] ^= 1
    [result] = space.put([item], [page.data])
    assert result.status == space.v1.CORRUPT and "layer 2, head 0" in result.message
    assert space.each([key_of("k")]) == [space.v1.MISS]
    item.block_crc32c[4] ^= 1
    assert space.put([item], [page.data])[0].status == space.v1.OK


def test_wrong_number_of_checksums(space, page):
    item = space.item(key_of("k"), page)
    del item.block_crc32c[-1]
    [result] = space.put([item], [page.data])
    assert result.status == space.v1.INVALID and "expected 6 block checksums, found 5" in result.message


def test_different_bytes_under_a_key(space, page):
    assert space.put([space.item(key_of("k"), page)], [page.data])[0].status == space.v1.OK
    other = wide_page(SHAPE, 1)
    [result] = space.put([space.item(key_of("k"), other)], [other.data])
    assert result.status == space.v1.CONFLICT and "other block checksums" in result.message
    assert bytes(space.get([key_of("k")])[0][0][1]) == page.data


def test_page_without_its_parent(space, page):
    [result] = space.put([space.item(key_of("k"), page, key_of("unknown"), SHAPE.tokens)], [page.data])
    assert result.status == space.v1.SKIPPED and key_of("unknown").hex()[:16] in result.message
    space.put([space.item(key_of("root"), page)], [page.data])
    [result] = space.put([space.item(key_of("k"), page, key_of("root"), 1)], [page.data])
    assert result.status == space.v1.INVALID and f"{SHAPE.tokens}, found 1" in result.message


def test_packed_page_where_there_is_no_transform_set(space, page):
    item = space.item(key_of("k"), page)
    item.encoding = space.v1.PACKED
    [result] = space.put([item], [page.data])
    assert result.status == space.v1.INVALID and "no transform set" in result.message
    item.encoding = 77
    [result] = space.put([item], [page.data])
    assert result.status == space.v1.INVALID and "found 77" in result.message


def test_too_few_bytes(space, page):
    [result, other] = space.put([space.item(key_of("k"), page), space.item(key_of("other"), page)],
                                [page.data[:-1], page.data])
    assert result.status == space.v1.INVALID
    assert f"expected {len(page.data)} bytes, {len(page.data) - 1} came" in result.message
    assert other.status == space.v1.OK and space.each([key_of("k")]) == [space.v1.MISS]


def test_too_many_bytes(space, page):
    [result] = space.put([space.item(key_of("k"), page)], [page.data + b"more"], chunk_bytes=4096)
    assert result.status == space.v1.INVALID and space.each([key_of("k")]) == [space.v1.MISS]


@pytest.mark.parametrize("chunks, message", [
    ([(1, 0, b"x")], "item 1 of 1"), ([(2 ** 32 - 1, 0, b"x")], "item 4294967295"),
    ([(0, 0, b"x" * 4097)], "4097 bytes")])
def test_chunks_out_of_place_end_the_call(space, page, chunks, message):
    v1 = space.v1
    sent = [space.header([space.item(key_of("k"), page)])]
    sent += [v1.PutRequest(chunk=v1.Chunk(item=item, offset=offset, data=data)) for item, offset, data in chunks]
    code, found = error_of(lambda: space.cache.Put(iter(sent)))
    assert code == "INVALID_ARGUMENT" and message in found


@pytest.mark.parametrize("offset", [1, 2 ** 64 - 1])
def test_chunk_at_the_wrong_offset(space, page, offset):
    v1 = space.v1
    sent = [space.header([space.item(key_of("k"), page)]), v1.PutRequest(chunk=v1.Chunk(offset=offset, data=b"x" * 64))]
    [result] = space.cache.Put(iter(sent)).results
    assert result.status == v1.INVALID and f"at {offset}, expected at 0" in result.message


def test_messages_out_of_order(space, page):
    header = space.header([space.item(key_of("k"), page)])
    chunk = next(space.chunks(0, page.data))
    for messages, expected in (([], "none came"), ([chunk], "a chunk came"), ([header, header], "second one came")):
        code, message = error_of(lambda: space.cache.Put(iter(messages)))
        assert code == "INVALID_ARGUMENT" and expected in message


def test_header_that_claims_too_many_items(space, page):
    code, message = put_fails(space, [space.item(key_of(i), page) for i in range(9)])
    assert code == "INVALID_ARGUMENT" and "at most 8 items in one call, found 9" in message


def test_item_that_claims_a_huge_size(space, page):
    item = space.item(key_of("k"), page)
    item.bytes = 2 ** 64 - 1
    before = held(space.stats())
    [result] = space.put([item], [page.data])
    assert result.status == space.v1.INVALID and str(2 ** 64 - 1) in result.message
    assert held(space.stats()) == before


def open_put(space, messages):
    """A put whose messages are given one by one; None ends it."""
    sent = queue.SimpleQueue()
    for message in messages:
        sent.put(message)
    return space.cache.Put.future(iter(sent.get, None)), sent


def test_put_cut_off_in_the_middle(space, page, eventually):
    before = space.stats()
    item = space.item(key_of("k"), page)
    call, sent = open_put(space, [space.header([item]), *list(space.chunks(0, page.data))[:-1]])
    eventually(lambda: space.stats().inflight_bytes, len(page.data))
    assert space.stats().tiers[0].used_bytes > before.tiers[0].used_bytes
    assert space.each([key_of("k")]) == [space.v1.MISS]  # a half-sent page is never visible
    call.cancel()
    sent.put(None)
    eventually(lambda: held(space.stats()), held(before))
    assert space.each([key_of("k")]) == [space.v1.MISS]
    name = "oscarkv_puts_abandoned_total"
    assert space.stats().counters[name] == before.counters[name] + 1
    assert space.put([item], [page.data])[0].status == space.v1.OK


def test_pages_that_were_whole_stay_when_a_put_is_cut_off(space, page, eventually):
    items = [space.item(key_of("a"), page), space.item(key_of("b"), page, key_of("a"), SHAPE.tokens)]
    call, sent = open_put(space, [space.header(items), *space.chunks(0, page.data), next(space.chunks(1, page.data))])
    eventually(lambda: space.each([key_of("a")]), [space.v1.OK])
    call.cancel()
    sent.put(None)
    eventually(lambda: space.stats().inflight_bytes, 0)
    assert space.each([key_of("a"), key_of("b")]) == [space.v1.OK, space.v1.MISS]


def test_put_past_its_deadline(space, page, eventually):
    sent = queue.SimpleQueue()
    sent.put(space.header([space.item(key_of("k"), page)]))
    sent.put(next(space.chunks(0, page.data)))
    with pytest.raises(grpc.RpcError) as error:
        space.cache.Put(iter(sent.get, None), timeout=0.2)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    sent.put(None)
    eventually(lambda: space.stats().inflight_bytes, 0)


def test_two_writers_of_a_key(space, page, eventually):
    item = space.item(key_of("k"), page)
    call, sent = open_put(space, [space.header([item]), next(space.chunks(0, page.data))])
    eventually(lambda: space.stats().inflight_bytes, len(page.data))
    assert space.put([item], [page.data])[0].status == space.v1.OK  # a writer that stalls holds up nobody
    for chunk in list(space.chunks(0, page.data))[1:]:
        sent.put(chunk)
    sent.put(None)
    assert call.result().results[0].status == space.v1.EXISTS


def test_too_many_bytes_in_flight(open_space, page, space, eventually):
    large_page = zero_page(Shape(layers=24, heads=8, tokens=16))  # 768 KiB: one fits the budget of 1 MiB, two do not
    large = open_space("large", shape=large_page.shape)
    header = large.header([large.item(key_of("a"), large_page)])
    call, sent = open_put(large, [header, next(large.chunks(0, large_page.data))])
    eventually(lambda: large.stats().inflight_bytes, len(large_page.data))
    item = large.item(key_of("b"), large_page)
    [result] = large.put([item], [large_page.data], chunk_bytes=4096)
    assert result.status == large.v1.BUSY and "in flight" in result.message
    assert space.put([space.item(key_of("small"), page)], [page.data])[0].status == space.v1.OK
    call.cancel()
    sent.put(None)
    eventually(lambda: large.stats().inflight_bytes, 0)
    assert large.put([item], [large_page.data], chunk_bytes=4096)[0].status == large.v1.OK


def raw_put(space, messages):
    """A Put of bytes that nobody has made sure are messages."""
    call = space.channel.stream_unary("/oscarkv.v1.KvCache/Put", request_serializer=bytes, response_deserializer=bytes)
    return error_of(lambda: call(iter(messages), timeout=30))


@pytest.mark.parametrize("garbage", [
    b"\xff" * 11, b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x10", b"\x12\x03\x1a\x7fa", b"\x12\x02\x0b\x0c", b"\x00\x00",
    b"\x12\x05\x08\x01\x1a\x01a\x12\x05\x08\x01\x1a\x01a",
], ids=["varint without end", "2^60 bytes", "more than there is", "a group", "field 0", "two chunks in one"])
def test_messages_that_are_none(space, page, garbage, eventually):
    assert raw_put(space, [garbage])[0] == "INVALID_ARGUMENT"
    header = space.header([space.item(key_of("k"), page)]).SerializeToString()
    assert raw_put(space, [header, garbage])[0] == "INVALID_ARGUMENT"
    assert space.each([key_of("k")]) == [space.v1.MISS]
    eventually(lambda: space.stats().inflight_bytes, 0)
