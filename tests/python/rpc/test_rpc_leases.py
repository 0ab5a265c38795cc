"""Sessions and leases: what holds a page, what ends a lease, and what is refused."""

import pytest

from .pages import Shape, key_of, zero_page
from .store import Session

SHAPE = Shape(layers=24, heads=8, tokens=16)  # pages of 768 KiB
PAGE = zero_page(SHAPE)
SERVER = {"capacity": "16MiB",
          "config": "limits: {max_leased_share: 0.75, max_inflight: 16MiB, lease_ms_max: 86400000, max_chunk: 4MiB}"}
FITTING = 21  # pages that the store certainly cannot hold at once


@pytest.fixture
def space(open_space):
    return open_space(shape=SHAPE)


@pytest.fixture
def session(space, eventually):
    with Session(space) as session:
        yield session
    eventually(lambda: space.stats().sessions, 0)


def put(space, number):
    [result] = space.put([space.item(key_of(number), PAGE)], [PAGE.data], chunk_bytes=4 << 20)
    return result


def lease(space, session_id, numbers, **fields):
    return space.lookup([key_of(number) for number in numbers], mode=space.v1.LookupRequest.EACH, lease=True,
                        session_id=session_id, **fields)


def test_session_has_an_id_of_its_own_and_the_epoch(space, session):
    with Session(space) as other:
        assert session.id != other.id and 0 not in (session.id, other.id)
        assert space.stats().sessions == 2


def test_leased_pages_outlive_pressure(space, session):
    v1 = space.v1
    assert put(space, 0).status == v1.OK
    held = lease(space, session.id, [0])
    assert held.lease_id != 0 and space.stats().leases == 1
    assert space.stats().tiers[0].leased_bytes >= len(PAGE.data)
    for number in range(1, FITTING + 1):
        assert put(space, number).status == v1.OK
    assert space.each([key_of(0), key_of(1)]) == [v1.OK, v1.EVICTED]
    request = v1.ReleaseLeaseRequest(scope=space.scope, lease_id=held.lease_id)
    assert space.cache.ReleaseLease(request).status == v1.OK
    assert space.cache.ReleaseLease(request).status == v1.FENCED  # no longer there
    assert space.stats().leases == 0 and space.stats().tiers[0].leased_bytes == 0


@pytest.mark.parametrize("ending", ["end", "cancel"])
def test_lease_goes_with_its_session(space, eventually, ending):
    put(space, 0)
    with Session(space) as session:
        assert lease(space, session.id, [0]).lease_id != 0
        if ending == "end":
            session.end()
    eventually(lambda: (space.stats().leases, space.stats().sessions), (0, 0))
    assert space.stats().counters["oscarkv_leases_orphaned_total"] >= 1
    assert space.each([key_of(0)]) == [space.v1.OK]


def test_lease_ends_with_its_time(space, session, eventually):
    put(space, 0)
    held = lease(space, session.id, [0], lease_ms=1)
    assert held.lease_id != 0
    eventually(lambda: space.stats().leases, 0)
    assert space.stats().counters["oscarkv_leases_expired_total"] >= 1


def test_page_that_went_after_its_lease_is_fenced(space, session):
    v1 = space.v1
    put(space, 0)
    held = lease(space, session.id, [0])
    space.cache.ReleaseLease(v1.ReleaseLeaseRequest(scope=space.scope, lease_id=held.lease_id))
    [(item, data)], _ = space.get([key_of(0)], lease_id=held.lease_id)
    assert item.result.status == v1.OK and bytes(data) == PAGE.data  # still there: served all the same
    assert space.call("Delete", [key_of(0)]) == [v1.OK]
    [(item, _)], _ = space.get([key_of(0)], lease_id=held.lease_id)
    assert item.result.status == v1.FENCED and "lease has ended" in item.result.message
    [(item, _)], _ = space.get([key_of(0)])
    assert item.result.status == v1.MISS


def test_deleted_page_is_gone_and_its_memory_comes_back_with_the_lease(space, session, eventually):
    put(space, 0)
    held = lease(space, session.id, [0])
    assert space.call("Delete", [key_of(0)]) == [space.v1.OK]
    [(item, _)], _ = space.get([key_of(0)], lease_id=held.lease_id)
    assert item.result.status == space.v1.MISS
    assert space.stats().tiers[0].used_bytes >= len(PAGE.data)
    session.end()
    eventually(lambda: space.stats().tiers[0].used_bytes, 0)


def test_clear_keeps_what_is_leased(space, session):
    put(space, 0)
    put(space, 1)
    lease(space, session.id, [1])
    cleared = space.clear()
    assert (cleared.removed, cleared.kept) == (1, 1)
    assert space.each([key_of(0), key_of(1)]) == [space.v1.MISS, space.v1.OK]


def test_no_lease_without_an_open_session(space):
    put(space, 0)
    for session_id in (0, 12345):
        answer = lease(space, session_id, [0])
        assert answer.lease_id == 0 and answer.pages[0].status == space.v1.OK
    assert space.stats().leases == 0


def test_no_lease_beyond_the_share(space, session):
    stored = [number for number in range(17) if put(space, number).status == space.v1.OK]
    answer = lease(space, session.id, stored)
    assert answer.lease_id == 0 and [page.status for page in answer.pages] == [space.v1.OK] * len(stored)
    assert space.stats().counters["oscarkv_leases_refused_total"] >= 1 and space.stats().tiers[0].leased_bytes == 0
    assert lease(space, session.id, stored[:5]).lease_id != 0


def test_session_that_says_nothing_is_none(space):
    assert list(space.cache.Session(iter([]))) == []
    assert space.stats().sessions == 0
