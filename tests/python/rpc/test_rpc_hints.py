"""What clients say of a request: hints, residency, and the time to live of a namespace's pages."""

import time

import grpc
import pytest

from .pages import Shape, key_of, wide_page, zero_page
from .process import START_S
from .store import TIMEOUT_S, Session

SERVER = {"capacity": "16MiB", "config": "eviction: {policy: learnt, max_pinned_share: 0.25}", "metrics_listen": "127.0.0.1:0"}
SHAPE = Shape()


def put_with(space, key, page, **hints):
    """Puts one page with hints: its status."""
    header = space.header([space.item(key, page)])
    header.header.hints.CopyFrom(space.v1.RequestHints(**hints))

    def messages():
        yield header
        yield from space.chunks(0, page.data, chunk_bytes=1 << 20)
    return space.cache.Put(messages(), timeout=TIMEOUT_S).results[0].status


def touch_with(space, keys, **hints):
    request = space.v1.KeysRequest(scope=space.scope, keys=keys, hints=space.v1.RequestHints(**hints))
    return [result.status for result in space.cache.Touch(request, timeout=TIMEOUT_S).results]


def test_pinning_ends_at_the_ceiling_and_pinned_pages_stay(open_space):
    page = zero_page(Shape(layers=24, heads=8, tokens=16))
    space = open_space(shape=page.shape)
    v1, pinned = space.v1, []
    while (status := put_with(space, key_of(len(pinned)), page, residency=v1.PINNED)) == v1.OK:
        pinned.append(key_of(len(pinned)))
    assert status == v1.QUOTA and len(pinned) >= 2
    for number in range(100, 140):  # more than there is room for
        put_with(space, key_of(number), page)
    assert space.each(pinned) == [v1.OK] * len(pinned)
    # Unpinned, they make room for others to be pinned.
    assert touch_with(space, pinned, residency=v1.MAY_GO_FIRST) == [v1.OK] * len(pinned)
    assert put_with(space, key_of(200), page, residency=v1.PINNED) == v1.OK
    assert v1.OK not in space.each(pinned[:1]) or space.each(pinned).count(v1.OK) < len(pinned)


def test_every_call_takes_hints(space):
    v1, page = space.v1, wide_page(SHAPE, 1)
    hints = {"reuse": v1.WILL_RETURN, "priority": 2, "output_tokens": 100, "request_id": 7}
    assert put_with(space, key_of("a"), page, **hints) == v1.OK
    assert touch_with(space, [key_of("a")], reuse=v1.SESSION_OVER, priority=-2) == [v1.OK]
    [(item, data)], _ = space.get([key_of("a")], hints=v1.RequestHints(reuse=v1.SINGLE_SHOT))
    assert item.result.status == v1.OK and bytes(data) == page.data


@pytest.mark.parametrize("hints", [{"priority": 3}, {"priority": -3}, {"reuse": 9}, {"residency": 9}])
def test_hints_that_are_none_are_refused(space, hints):
    v1, page = space.v1, wide_page(SHAPE, 1)
    for call in (lambda: put_with(space, key_of("a"), page, **hints), lambda: touch_with(space, [key_of("a")], **hints),
                 lambda: space.get([key_of("a")], hints=v1.RequestHints(**hints))):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "hints: " in refused.value.details()


def test_hints_of_a_session_complete_those_of_its_calls(space):
    v1, page = space.v1, wide_page(SHAPE, 1)
    assert put_with(space, key_of("a"), page) == v1.OK
    with Session(space) as session:
        session.send(v1.SessionRequest(hints=v1.RequestHints(priority=9)))
        deadline = time.monotonic() + START_S
        refused = None
        while refused is None and time.monotonic() < deadline:
            try:
                touch_with(space, [key_of("a")], session_id=session.id)
            except grpc.RpcError as error:
                refused = error
        assert "priority must be -2..2, found 9" in refused.details()
        # What the call says counts.
        assert touch_with(space, [key_of("a")], session_id=session.id, priority=1) == [v1.OK]
        session.end()


def test_pages_that_nobody_uses_end_with_their_time(open_space, eventually):
    space = open_space()
    v1, page = space.v1, wide_page(SHAPE, 1)
    assert space.put([space.item(key_of("a"), page)], [page.data])[0].status == v1.OK
    request = v1.OpenNamespaceRequest(spec=space.spec, page_ttl_ms=1)
    space.cache.OpenNamespace(request, timeout=TIMEOUT_S)
    eventually(lambda: space.each([key_of("a")]), [v1.EVICTED])
