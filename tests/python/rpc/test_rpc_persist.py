"""Persist: what it says is durable is there after kill -9, with what it extends, its namespace and its transform set."""

import grpc
import pytest

from . import transforms
from .pages import Shape, key_of, wide_page
from .process import Oscarkvd
from .store import Space, error_of

SHAPE = Shape()


def persist(space, keys, timeout=30):
    request = space.v1.KeysRequest(scope=space.scope, keys=keys)
    return list(space.cache.Persist(request, timeout=timeout).results)


def put(space, first, pages):
    keys = [key_of(i) for i in range(first, first + pages)]
    space.put_sequence(keys, [wide_page(SHAPE, i) for i in range(first, first + pages)])
    return keys


def test_what_is_durable_outlives_the_server_and_nothing_else_does(v1, start):
    file = transforms.identity(SHAPE)
    with start(admit="fetched") as (*_, channel):  # which writes no page by itself
        space = Space(v1, channel, "m", transform_hash=transforms.hash_of(file))
        space.upload(file, transforms.hash_of(file))
        keys = put(space, 0, 5)
        results = persist(space, [keys[3], key_of(99)])
        assert [result.status for result in results] == [v1.OK, v1.MISS]
        stats = space.stats()
        assert stats.counters["oscarkv_disk_written_pages_total"] == 4
        assert stats.counters['oscarkv_persisted_pages_total{outcome="OK"}'] == 1
    with start(admit="fetched") as (*_, channel):  # which writes no page by itself
        cache = v1.KvCache(channel)
        scope = v1.Scope(fingerprint=space.opened.fingerprint)  # nobody has opened it again
        found = cache.Lookup(v1.LookupRequest(scope=scope, keys=keys))
        assert [page.tier for page in found.pages] == [v1.DISK] * 4
        transform = b"".join(reply.data for reply in cache.GetTransformSet(
            v1.GetTransformSetRequest(hash=transforms.hash_of(file))))
        assert transform == file
        again = Space(v1, channel, "m", transform_hash=transforms.hash_of(file))
        fetched, _ = again.get(keys[:4])
        assert [bytes(data) for _, data in fetched] == [wide_page(SHAPE, i).data for i in range(4)]


def test_without_its_transform_set_nothing_is_durable(v1, start):
    file = transforms.identity(SHAPE)
    with start(admit="fetched") as (*_, channel):  # which writes no page by itself
        space = Space(v1, channel, "m", transform_hash=transforms.hash_of(file))
        keys = put(space, 0, 1)
        code, message = error_of(lambda: persist(space, keys))
        assert code == "FAILED_PRECONDITION" and "has not been uploaded" in message
        space.upload(file, transforms.hash_of(file))
        assert [result.status for result in persist(space, keys)] == [v1.OK]


def test_a_server_without_a_disk_refuses(build_dir, v1):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    with Oscarkvd(build_dir) as server, grpc.insecure_channel(server.endpoint) as channel:
        space = Space(v1, channel, "m")
        keys = put(space, 0, 1)
        code, message = error_of(lambda: persist(space, keys))
        assert code == "FAILED_PRECONDITION" and "no disk tier" in message


def test_malformed_requests_are_refused_and_change_nothing(v1, start):
    with start(admit="fetched") as (*_, channel):  # which writes no page by itself
        space = Space(v1, channel, "m")
        assert error_of(lambda: persist(space, [b"short"]))[0] == "INVALID_ARGUMENT"
        assert error_of(lambda: persist(space, [key_of(0)] * 5000))[0] == "INVALID_ARGUMENT"
        space.scope.fingerprint = b"x" * 32
        assert error_of(lambda: persist(space, [key_of(0)]))[0] == "FAILED_PRECONDITION"
        space.scope.fingerprint = space.opened.fingerprint
        space.scope.server_epoch += 1
        assert error_of(lambda: persist(space, [key_of(0)]))[0] == "ABORTED"
