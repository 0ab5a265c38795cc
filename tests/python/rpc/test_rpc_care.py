"""What operators use: listing, removing, touching, statistics, verifying, metrics, health and reflection."""

import collections
import re

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from .pages import Shape, key_of, packed_page, wide_page, zero_page
from .store import error_of

SHAPE = Shape()
SERVER = {"capacity": "16MiB", "metrics_listen": "127.0.0.1:0", "config": "eviction: {policy: lru}"}


@pytest.fixture
def tree(space):
    """A root with two sequences of two pages each, and another root: keys by name."""
    keys = {name: key_of(name) for name in ("root", "a1", "a2", "b1", "b2", "other")}
    links = (("root", None, 0), ("a1", "root", 1), ("a2", "a1", 2), ("b1", "root", 1), ("b2", "b1", 2),
             ("other", None, 0))
    for number, (name, parent, depth) in enumerate(links):
        page = wide_page(SHAPE, number)
        item = space.item(keys[name], page, keys[parent] if parent else b"", depth * SHAPE.tokens)
        assert space.put([item], [page.data])[0].status == space.v1.OK
    return keys


def test_delete_takes_what_extends_the_page(space, tree):
    v1 = space.v1
    assert space.call("Delete", [tree["b1"], key_of("unknown")]) == [v1.OK, v1.MISS]
    assert space.each(tree.values()) == [v1.OK, v1.OK, v1.OK, v1.MISS, v1.MISS, v1.OK]
    assert space.call("Delete", [tree["root"]]) == [v1.OK]
    assert space.each(tree.values()) == [v1.MISS] * 5 + [v1.OK]


@pytest.mark.parametrize("page_size", [1, 2, 3, 0])
def test_list_names_every_page_once(space, tree, page_size):
    listed, cursor, calls = [], b"", 0
    while True:
        reply = space.cache.List(space.v1.ListRequest(scope=space.scope, max_keys=page_size, cursor=cursor))
        assert page_size == 0 or len(reply.pages) <= page_size
        listed += reply.pages
        calls, cursor = calls + 1, reply.cursor
        if not cursor:
            break
    assert calls >= (6 / page_size if page_size else 1)
    assert collections.Counter(page.key for page in listed) == collections.Counter(tree.values())
    by_key = {page.key: page for page in listed}
    assert by_key[tree["a2"]].parent == tree["a1"] and by_key[tree["root"]].parent == b""
    info = by_key[tree["a2"]].info
    assert (info.status, info.encoding, info.bytes) == (space.v1.OK, space.v1.WIDE, SHAPE.page_bytes(1))
    assert info.first_position == 2 * SHAPE.tokens


def test_clear_empties_one_namespace(space, tree, open_space):
    other = open_space("neighbour")
    page = wide_page(SHAPE, 0)
    other.put([other.item(key_of("k"), page)], [page.data])
    cleared = space.clear()
    assert (cleared.removed, cleared.kept) == (6, 0)
    assert other.each([key_of("k")]) == [1] and not space.cache.List(space.v1.ListRequest(scope=space.scope)).pages


def test_namespaces_do_not_see_each_other(open_space):
    first, second = open_space("first"), open_space("second")
    one, two = wide_page(SHAPE, 1), wide_page(SHAPE, 2)
    for space, page in ((first, one), (second, two)):
        assert space.each([key_of("k")]) == [space.v1.MISS]
        assert space.put([space.item(key_of("k"), page)], [page.data])[0].status == space.v1.OK
    assert [bytes(space.get([key_of("k")])[0][0][1]) for space in (first, second)] == [one.data, two.data]


def fill(space, page, numbers):
    for number in numbers:
        assert space.put([space.item(key_of(number), page)], [page.data], chunk_bytes=1 << 20)[0].status == space.v1.OK


@pytest.mark.parametrize("use", ["Touch", "Get", "Lookup"])
def test_touching_and_fetching_refresh_and_looking_does_not(open_space, use):
    page = zero_page(Shape(layers=24, heads=8, tokens=16))
    space = open_space(shape=page.shape)
    fill(space, page, range(10))
    if use == "Touch":
        assert space.call("Touch", [key_of(0), key_of("unknown")]) == [space.v1.OK, space.v1.MISS]
    elif use == "Get":
        space.get([key_of(0)])
    else:
        assert space.lookup([key_of(0)]).prefix_pages == 1
    number = 10
    while space.each([key_of(1)]) == [space.v1.OK]:  # until the pages that nobody used begin to go
        fill(space, page, [number])
        number += 1
    assert space.each([key_of(0)]) == [space.v1.EVICTED if use == "Lookup" else space.v1.OK]


def test_stats_tell_what_is_held(packing):
    v1 = packing.v1
    before = packing.stats()
    wide, (packed, _) = wide_page(SHAPE, 1), packed_page(SHAPE, 2)
    packing.put([packing.item(key_of("w"), wide), packing.item(key_of("p"), packed)], [wide.data, packed.data])
    packing.get([key_of("w"), key_of("p"), key_of("unknown")])
    packing.lookup([key_of("w"), key_of("unknown")])
    after = packing.stats()
    [mine] = [space for space in after.namespaces if space.fingerprint == packing.opened.fingerprint]
    assert (mine.wide_pages, mine.packed_pages) == (1, 1) and mine.spec.model == packing.spec.model
    assert mine.stored_bytes == SHAPE.page_bytes(1) + SHAPE.page_bytes(2)
    assert mine.wide_equivalent_bytes == 2 * SHAPE.page_bytes(1)
    [tier] = after.tiers
    assert tier.tier == v1.HOST and tier.capacity_bytes == 16 << 20 and tier.used_bytes > before.tiers[0].used_bytes
    assert after.version and after.uptime_s >= before.uptime_s and after.server_epoch == packing.opened.server_epoch
    grown = {name: count - before.counters[name] for name, count in after.counters.items()}
    assert {name: count for name, count in grown.items() if count} == {
        "oscarkv_put_bytes_total": mine.stored_bytes, "oscarkv_fetch_bytes_total": mine.stored_bytes,
        "oscarkv_fetch_hits_total": 2, "oscarkv_fetch_misses_total": 1, "oscarkv_lookup_keys_total": 2,
        "oscarkv_lookup_hits_total": 1, "oscarkv_lookup_misses_total": 1, 'oscarkv_puts_total{outcome="OK"}': 2,
        'oscarkv_hit_pages_total{tier="host",depth="1024"}': 2}


def test_verify_checks_every_page(space, tree):
    replies = list(space.admin.Verify(space.v1.VerifyRequest()))
    assert (replies[-1].pages_checked, replies[-1].pages_total, replies[-1].pages_corrupt) == (6, 6, 0)


def test_slow_verify_ends_when_its_client_goes(space, tree, server, eventually):
    call = space.admin.Verify(space.v1.VerifyRequest(bytes_per_second=1))  # an hour and more until the second page
    assert next(call).pages_checked == 1
    call.cancel()
    name = 'oscarkv_calls_total{method="Verify",code="CANCELLED"}'
    eventually(lambda: server.metrics()[0].get(name), 1)


def test_metrics_have_help_types_and_counts(space, tree, server):
    space.get([tree["root"], key_of("unknown")])
    error_of(lambda: space.lookup([b"short"]))
    samples, text = server.metrics()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helped = re.findall(r"^# HELP (\S+) \S", text, re.M)
    assert sorted(helped) == sorted(kinds) and len(set(helped)) == len(helped)
    assert all(name.startswith("oscarkv_") or name.startswith("exposer_") for name in kinds)
    ours = {name: kind for name, kind in kinds.items() if name.startswith("oscarkv_")}
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in ours.items())
    assert len(samples) == len([line for line in text.splitlines() if line and line[0] != "#"])  # no series twice
    labels = f'namespace="{space.opened.fingerprint.hex()[:12]}",model="{space.spec.model}",tenant="default"'
    assert samples[f'oscarkv_pages{{{labels},encoding="wide"}}'] == 6
    assert samples[f"oscarkv_stored_bytes{{{labels}}}"] == 6 * SHAPE.page_bytes(1)
    assert samples['oscarkv_calls_total{method="Lookup",code="INVALID_ARGUMENT"}'] == 1
    assert samples['oscarkv_puts_total{outcome="OK"}'] >= 6
    assert samples['oscarkv_tier_capacity_bytes{tier="host"}'] == 16 << 20
    gets = 'oscarkv_call_duration_seconds_{}{{method="Get"{}}}'
    assert samples[gets.format("count", "")] == samples[gets.format("bucket", ',le="+Inf"')] >= 1
    counters = space.stats().counters
    assert {name: samples[name] for name in counters} == {name: float(count) for name, count in counters.items()}


def test_metrics_can_be_read_whatever_a_namespace_is_called(open_space, server):
    open_space('a "model"\nwith\\all, of {it} = 1 é')
    samples, text = server.metrics()
    label = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
    assert all(re.fullmatch(rf"[a-z_]+(?:\{{{label}(?:,{label})*\}})? \S+", line)
               for line in text.splitlines() if line and line[0] != "#")
    assert any(r'model="a \"model\"\nwith\\all, of {it} = 1 é"' in series for series in samples)


def test_health_is_told_for_the_server_and_each_service(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "oscarkv.v1.KvCache", "oscarkv.v1.Admin"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="oscarkv.v2.KvCache"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_serves_the_contract(channel, v1):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"oscarkv.v1.KvCache", "oscarkv.v1.Admin", "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("oscarkv.v1.KvCache")
    mine = v1.GetRequest.DESCRIPTOR.file.services_by_name["KvCache"]
    assert [(method.name, method.input_type.full_name) for method in service.methods] == [
        (method.name, method.input_type.full_name) for method in mine.methods]
    reflected = service.methods_by_name["Get"].input_type
    assert [(field.name, field.number) for field in reflected.fields] == [
        (field.name, field.number) for field in v1.GetRequest.DESCRIPTOR.fields]
