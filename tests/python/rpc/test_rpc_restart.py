"""What a server with a disk tier knows again after kill -9: pages, their namespaces and transform sets, at once."""

import dataclasses

from . import transforms
from .pages import Shape, key_of, packed_page, wide_page
from .store import Space, error_of

SHAPE = Shape()


def counter(v1, admin, name):
    return admin.Stats(v1.StatsRequest()).counters[f"oscarkv_disk_{name}_total"]


def get(v1, cache, fingerprint, keys, **fields):
    found = []
    for reply in cache.Get(v1.GetRequest(scope=v1.Scope(fingerprint=fingerprint), keys=keys, **fields)):
        if reply.WhichOneof("part") == "item":
            found.append(bytearray())
        elif reply.WhichOneof("part") == "chunk":
            found[-1] += reply.chunk.data
    return found


def test_a_restarted_server_re_encodes_as_it_was_told_to(v1, start, eventually):
    file = transforms.identity(SHAPE)
    keys, more = [key_of(i) for i in range(3)], [key_of(i) for i in range(3, 6)]
    some = [wide_page(SHAPE, i) for i in range(3)]
    with start() as (_, cache, admin, channel):
        space = Space(v1, channel, "m", transform_hash=transforms.hash_of(file), store_wide=v1.WIDE_NEVER)
        space.upload(file, transforms.hash_of(file))
        space.put_sequence(keys, some)
        eventually(lambda: counter(v1, admin, "written_pages"), 3)
        assert [page.encoding for page in space.lookup(keys).pages] == [v1.PACKED] * 3
    with start() as (_, cache, admin, channel):
        # Written as what they had become; and what is put now, before anybody says anything, becomes so too.
        again = Space(v1, channel, "m", transform_hash=transforms.hash_of(file))
        found = again.lookup(keys).pages
        assert [(page.tier, page.encoding) for page in found] == [(v1.DISK, v1.PACKED)] * 3
        again.put_sequence(more, some)
        eventually(lambda: [page.encoding for page in again.lookup(more).pages], [v1.PACKED] * 3)


def test_a_restarted_server_serves_at_once(v1, start, eventually):
    file = transforms.identity(SHAPE)
    keys = [key_of(i) for i in range(3)]
    packed, decoded = packed_page(SHAPE, 5)
    some = [wide_page(SHAPE, 1), packed, wide_page(SHAPE, 2)]
    with start() as (_, cache, admin, channel):
        space = Space(v1, channel, "m", transform_hash=transforms.hash_of(file))
        space.upload(file, transforms.hash_of(file))
        space.put_sequence(keys, some)
        eventually(lambda: counter(v1, admin, "written_pages"), 3)
    fingerprint = space.opened.fingerprint
    for _ in range(2):  # what was found once is found again
        with start() as (_, cache, admin, _channel):
            # Nobody has opened a namespace or brought a transform set.
            lookup = cache.Lookup(v1.LookupRequest(scope=v1.Scope(fingerprint=fingerprint), keys=keys))
            assert lookup.prefix_pages == 3 and [page.tier for page in lookup.pages] == [v1.DISK] * 3
            assert get(v1, cache, fingerprint, keys) == [page.data for page in some]
            assert get(v1, cache, fingerprint, [keys[1]], form=v1.DECODED) == [decoded.data]
            sent = b"".join(reply.data for reply in cache.GetTransformSet(
                v1.GetTransformSetRequest(hash=transforms.hash_of(file))))
            assert sent == file
            [held] = admin.Stats(v1.StatsRequest()).namespaces
            assert held.spec == space.spec or held.fingerprint == fingerprint
            assert counter(v1, admin, "catalog_skipped") == 0


def test_settings_of_a_namespace_stay(v1, start):
    spec = None
    with start() as (_, cache, _admin, channel):
        spec = Space(v1, channel, "m").spec
        cache.OpenNamespace(v1.OpenNamespaceRequest(spec=spec, page_ttl_ms=50_000))
        cache.OpenNamespace(v1.OpenNamespaceRequest(spec=spec))  # one that does not know of it
    with start() as (_, cache, admin, channel):
        assert cache.OpenNamespace(v1.OpenNamespaceRequest(spec=spec, create=False)).fingerprint
        assert counter(v1, admin, "catalog_failed_writes") == 0


def test_damaged_files_are_passed_over_and_written_again(v1, start, tmp_path, eventually):
    key, page = key_of(1), wide_page(SHAPE, 1)
    with start() as (_, cache, admin, channel):
        space = Space(v1, channel, "m")
        space.put_sequence([key], [page])
        eventually(lambda: counter(v1, admin, "written_pages"), 1)
    [file] = (tmp_path / "tier").glob("namespace-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:4100] + bytes([whole[4100] ^ 1]) + whole[4101:])
    with start() as (server, cache, admin, channel):
        assert "passed over on disk" in open(server.log).read()
        assert counter(v1, admin, "catalog_skipped") >= 1
        lookup = v1.LookupRequest(scope=v1.Scope(fingerprint=space.opened.fingerprint), keys=[key])
        assert error_of(lambda: cache.Lookup(lookup))[0] == "FAILED_PRECONDITION"
        assert Space(v1, channel, "m").lookup([key]).prefix_pages == 1
    assert file.read_bytes() == whole
    with start() as (_, cache, admin, _channel):
        assert cache.Lookup(lookup).prefix_pages == 1
        assert counter(v1, admin, "catalog_skipped") == 0


def test_a_transform_set_that_finds_no_room_serves_from_memory_alone(v1, start, tmp_path):
    shape = dataclasses.replace(SHAPE, k_dim=128, v_dim=128)
    file = transforms.identity(shape)  # more than a sixteenth of the capacity
    with start("4MiB") as (server, cache, admin, channel):
        space = Space(v1, channel, "m", shape=shape, transform_hash=transforms.hash_of(file))
        assert not space.upload(file, transforms.hash_of(file)).existed
        assert space.upload(file, transforms.hash_of(file)).existed
        assert counter(v1, admin, "catalog_failed_writes") == 2
        assert "not saved" in open(server.log).read()
        size = sum(entry.stat().st_size for entry in (tmp_path / "tier").iterdir())
        assert size <= 4 << 20
    with start("4MiB") as (_, cache, _admin, channel):
        assert not Space(v1, channel, "m", shape=shape, transform_hash=transforms.hash_of(file)).opened.has_transform_set
