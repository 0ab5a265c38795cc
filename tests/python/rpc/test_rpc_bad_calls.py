"""Calls that make no sense: refused with an error that names both sides, nothing kept, the server goes on."""

import grpc
import pytest

from .pages import PACKED, Shape, key_of, wide_page
from .store import error_of, held

SHAPE = Shape()
SERVER = {"config": "limits: {max_items: 8, max_namespaces: 200}"}
KEYED = ["Lookup", "Get", "Touch", "Delete"]


@pytest.fixture(autouse=True)
def goes_on(space):
    """After what the test does, the server still serves, and no call has left anything under way."""
    yield
    assert held(space.stats()).items() >= {"leases": 0, "sessions": 0, "inflight_bytes": 0}.items()
    page = wide_page(SHAPE, 0)
    assert space.put([space.item(key_of("afterwards"), page)], [page.data])[0].status == space.v1.OK


def request_of(space, method, keys, scope=None, **fields):
    message = {"Lookup": space.v1.LookupRequest, "Get": space.v1.GetRequest}.get(method, space.v1.KeysRequest)
    return message(scope=scope or space.scope, keys=keys, **fields)


def refused(space, method, request):
    return error_of(lambda: getattr(space.cache, method)(request))


@pytest.mark.parametrize("fingerprint", [b"\x07" * 32, b"", b"short", b"x" * 10_000])
@pytest.mark.parametrize("method", [*KEYED, "List", "Clear"])
def test_unknown_fingerprint(space, method, fingerprint):
    scope = space.v1.Scope(fingerprint=fingerprint)
    request = (request_of(space, method, [key_of(1)], scope) if method in KEYED
               else getattr(space.v1, method + "Request")(scope=scope))
    code, message = refused(space, method, request)
    assert code == "FAILED_PRECONDITION" and fingerprint.hex()[:64] in message
    assert len(fingerprint) > 32 or f"{len(fingerprint)} bytes" in message


def test_put_under_an_unknown_fingerprint(space):
    space.scope.fingerprint = b"\x07" * 32
    code, message = error_of(lambda: space.put([space.item(key_of(1), wide_page(SHAPE, 0))], [None]))
    assert code == "FAILED_PRECONDITION" and "07" * 32 in message
    space.scope.fingerprint = space.opened.fingerprint


def test_fingerprint_other_than_expected_names_both(space):
    code, message = error_of(lambda: space.cache.OpenNamespace(space.v1.OpenNamespaceRequest(
        spec=space.spec, expected_fingerprint=b"\x01" * 32)))
    assert code == "FAILED_PRECONDITION"
    assert "01" * 32 in message and space.opened.fingerprint.hex() in message


def test_namespace_that_differs_names_what_differs(space):
    spec = space.v1.NamespaceSpec()
    spec.CopyFrom(space.spec)
    spec.geometry.page_tokens = 64
    code, message = error_of(lambda: space.cache.OpenNamespace(space.v1.OpenNamespaceRequest(spec=spec)))
    assert code == "FAILED_PRECONDITION" and space.opened.fingerprint.hex() in message
    assert f"geometry.page_tokens 64 / {SHAPE.tokens}" in message


def test_epoch_of_an_earlier_start(space):
    scope = space.v1.Scope(fingerprint=space.opened.fingerprint, server_epoch=space.opened.server_epoch ^ 1)
    code, message = refused(space, "Lookup", request_of(space, "Lookup", [key_of(1)], scope))
    assert code == "ABORTED"
    assert str(space.opened.server_epoch) in message and str(space.opened.server_epoch ^ 1) in message


@pytest.mark.parametrize("method", KEYED)
@pytest.mark.parametrize("key, found", [(b"", "found 0"), (b"k" * 15, "found 15"), (b"k" * 65, "found 65")])
def test_keys_of_the_wrong_length(space, method, key, found):
    code, message = refused(space, method, request_of(space, method, [key_of(1), key]))
    assert code == "INVALID_ARGUMENT" and "key 1" in message and "16..64 bytes" in message and found in message


@pytest.mark.parametrize("method", KEYED)
def test_too_many_keys(space, method):
    code, message = refused(space, method, request_of(space, method, [key_of(i) for i in range(9)]))
    assert code == "INVALID_ARGUMENT" and "at most 8" in message and "found 9" in message


def test_key_twice_in_one_read_is_answered_twice(space):
    page = wide_page(SHAPE, 0)
    space.put([space.item(key_of("k"), page)], [page.data])
    assert space.each([key_of("k")] * 2) == [space.v1.OK] * 2
    assert [bytes(data) for _, data in space.get([key_of("k")] * 2)[0]] == [page.data] * 2
    assert space.call("Delete", [key_of("k")] * 2)[0] == space.v1.OK


@pytest.mark.parametrize("fields, named", [
    ({"first_layer": 3}, "layers 3"), ({"first_layer": 1, "layers": 3}, "layers 1 + 3"), ({"layers": 4}, "has 3"),
    ({"first_layer": 2 ** 32 - 1, "layers": 2}, "layers 4294967295"), ({"layers": 2 ** 32 - 1}, "has 3"),
    ({"first_head": 2}, "heads 2"), ({"heads": 3}, "has 2")])
def test_range_past_the_end(space, fields, named):
    code, message = refused(space, "Get", request_of(space, "Get", [key_of(1)], **fields))
    assert code == "OUT_OF_RANGE" and named in message


@pytest.mark.parametrize("part, values, named", [
    ("geometry", {"layers": 0}, "layers"), ("geometry", {"layers": 2 ** 32 - 1}, "found 4294967295"),
    ("geometry", {"kv_heads": 257}, "found 257"), ("geometry", {"k_head_dim": 72}, "found 72"),
    ("geometry", {"page_tokens": 2 ** 31}, "page_tokens"), ("geometry", {"dtype": 9}, "found 9"),
    ("geometry", {"layers": 512, "kv_heads": 256, "k_head_dim": 256, "page_tokens": 4096}, "the most is 1073741824"),
    ("codec", {"group": 48}, "found 48"), ("codec", {"params": 257}, "found 257"),
    ("codec", {"wide_basis": 258}, "258"), ("codec", {"transform_hash": b"x" * 31}, "found 31"),
    (None, {"model": ""}, "model must not be empty"), (None, {"tenant": "t" * 257}, "found 257")])
def test_specs_that_cannot_be(space, part, values, named):
    spec = space.v1.NamespaceSpec()
    spec.CopyFrom(space.spec)
    for name, value in values.items():
        setattr(getattr(spec, part) if part else spec, name, value)
    code, message = error_of(lambda: space.cache.OpenNamespace(space.v1.OpenNamespaceRequest(spec=spec, create=True)))
    assert code == "INVALID_ARGUMENT" and named in message


def test_shard_and_bits_that_cannot_be(space):
    for spec in (space.v1.NamespaceSpec(shard=space.v1.ShardSpec(tp_rank=2, tp_size=2, pp_size=1)),
                 space.v1.NamespaceSpec(codec=space.v1.CodecSpec(bits=[space.v1.LayerBits(k=258, v=2)])),
                 space.v1.NamespaceSpec(codec=space.v1.CodecSpec(bits=[space.v1.LayerBits(k=2, v=2)] * 100_000))):
        whole = space.v1.NamespaceSpec()
        whole.CopyFrom(space.spec)
        whole.MergeFrom(spec)
        code, _ = error_of(lambda: space.cache.OpenNamespace(space.v1.OpenNamespaceRequest(spec=whole, create=True)))
        assert code == "INVALID_ARGUMENT"


def test_decoded_read_and_packed_put_without_the_transform_set(open_space):
    space = open_space("not uploaded", transform_hash=b"\x05" * 32)
    assert not space.opened.has_transform_set
    page = wide_page(SHAPE, 0)
    item = space.item(key_of("k"), page)
    assert space.put([item], [page.data])[0].status == space.v1.OK  # WIDE pages need none
    item.encoding = PACKED
    for call in (lambda: space.get([key_of("k")], form=space.v1.DECODED), lambda: space.put([item], [None])):
        code, message = error_of(call)
        assert code == "FAILED_PRECONDITION" and "05" * 32 in message and "not been uploaded" in message


def raw(channel, method, streaming, *messages):
    """A call whose messages are bytes."""
    kind = "stream_unary" if streaming else "unary_stream" if method == "Get" else "unary_unary"
    call = getattr(channel, kind)(f"/oscarkv.v1.KvCache/{method}", lambda data: data, lambda data: data)
    return error_of(lambda: call(iter(messages) if streaming else messages[0], timeout=30))


HOSTILE = {"not protobuf": b"\xff" * 64, "a length that is not there": b"\x12" + b"\xff" * 8 + b"\x7f" + b"x" * 32,
           "a length of 2 GiB": b"\x12\xff\xff\xff\xff\x07" + b"x" * 32, "groups without end": b"\x0b" * 10_000,
           "cut off": b"\x0a\x22\x0a\x20" + b"\x07" * 20}


@pytest.mark.parametrize("method, streaming", [("Put", True), ("Get", False), ("Lookup", False),
                                               ("PutTransformSet", True), ("OpenNamespace", False)])
@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_messages_that_claim_what_is_not_there(channel, method, streaming, message):
    code, _ = raw(channel, method, streaming, message)
    assert code in ("INVALID_ARGUMENT", "INTERNAL", "UNIMPLEMENTED")  # the last is what gRPC says of unary messages


def test_message_beyond_every_limit(space, channel):
    code, message = raw(channel, "Lookup", False, b"\x12\xff\xff\xff\x27" + bytes((80 << 20) - 1))
    assert code == "RESOURCE_EXHAUSTED" and "67108864" in message  # 64 MiB


def test_cursor_that_list_never_gave(space):
    code, message = error_of(lambda: space.cache.List(space.v1.ListRequest(scope=space.scope, cursor=b"\n?")))
    assert code == "INVALID_ARGUMENT" and r"\n?" in message
    for cursor in (b"18446744073709551615", b"9223372036854775807"):
        answer = space.cache.List(space.v1.ListRequest(scope=space.scope, cursor=cursor, max_keys=2 ** 32 - 1))
        assert not answer.pages and not answer.cursor


def test_unknown_method_and_service(channel):
    for name in ("/oscarkv.v1.KvCache/Steal", "/oscarkv.v2.KvCache/Get"):
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(name)(b"", timeout=30)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_more_namespaces_than_there_may_be(space, v1):
    spec = v1.NamespaceSpec()
    spec.CopyFrom(space.spec)
    codes = []
    for number in range(201):
        spec.salt = str(number)
        try:
            space.cache.OpenNamespace(v1.OpenNamespaceRequest(spec=spec, create=True))
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)
    assert codes[0] == "OK" and codes[-1] == "RESOURCE_EXHAUSTED"
