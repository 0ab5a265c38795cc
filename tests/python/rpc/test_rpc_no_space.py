"""A server whose memory is held by leases."""

from .pages import Shape, key_of, zero_page
from .store import Session

SERVER = {"capacity": "16MiB", "config": "limits: {max_leased_share: 1.0, max_inflight: 4MiB}"}


def test_put_is_told_that_there_is_no_space_and_nothing_is_lost(open_space):
    page = zero_page(Shape(layers=24, heads=8, tokens=16))
    space = open_space(shape=page.shape)
    v1, statuses = space.v1, []

    def put(number):
        [result] = space.put([space.item(key_of(number), page)], [page.data], chunk_bytes=1 << 20)
        return result
    with Session(space) as session:
        while v1.NO_SPACE not in statuses:
            number = len(statuses)
            statuses.append(put(number).status)
            space.lookup([key_of(number)], lease=True, session_id=session.id)
        held = len(statuses) - 1
        assert held >= 10 and statuses[:held] == [v1.OK] * held
        before = space.stats()
        assert "key " + key_of(held).hex()[:16] in put(held).message
        assert space.stats().inflight_bytes == 0
        assert space.stats().tiers[0].used_bytes == before.tiers[0].used_bytes
        assert space.lookup([key_of(held)]).prefix_pages == 0
        assert all(bytes(data) == page.data for _, data in space.get([key_of(number) for number in range(held)])[0])
        session.end()
    while put(held).status != v1.OK:  # the leases go soon after the session
        pass
