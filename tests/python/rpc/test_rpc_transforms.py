"""Transform sets: up once, served by their hash, refused when they are not what they say."""

import numpy as np
import pytest

from . import transforms
from .pages import Shape, key_of, packed_page
from .store import error_of

SHAPE = Shape()
SERVER = {"config": "limits: {max_transform_set: 1MiB, max_chunk: 4KiB}"}


def download(space, digest):
    replies = list(space.cache.GetTransformSet(space.v1.GetTransformSetRequest(hash=digest)))
    assert replies[0].header.hash == digest
    assert all(len(reply.data) <= 4096 for reply in replies[1:])
    data = b"".join(reply.data for reply in replies[1:])
    assert len(data) == replies[0].header.bytes
    return data


def refused(space, file, digest=None, announced_bytes=None):
    """A set that must not be taken, nor served afterwards."""
    digest = digest or transforms.hash_of(file)
    code, message = error_of(lambda: space.upload(file, digest, announced_bytes))
    assert error_of(lambda: space.cache.GetTransformSet(space.v1.GetTransformSetRequest(hash=digest)))[0] == "NOT_FOUND"
    return code, message


def test_set_travels_once_and_is_served_by_its_hash(space):
    file = transforms.identity(SHAPE)
    digest = transforms.hash_of(file)
    assert not space.upload(file, digest).existed
    assert space.upload(file, digest).existed
    assert download(space, digest) == file


def test_opening_says_whether_the_set_is_there(open_space):
    file = transforms.identity(SHAPE, k_clip_ratio=np.full((SHAPE.layers, 1), 0.9, np.float32))
    digest = transforms.hash_of(file)
    space = open_space(transform_hash=digest)
    assert not space.opened.has_transform_set
    space.upload(file, digest)
    assert open_space(transform_hash=digest).opened.has_transform_set
    packed, wide = packed_page(SHAPE, 1)  # opened before the upload, and usable after it
    assert space.put([space.item(key_of("k"), packed)], [packed.data])[0].status == space.v1.OK
    assert bytes(space.get([key_of("k")], form=space.v1.DECODED)[0][0][1]) == wide.data


def test_inverse_that_does_not_invert(space):
    inverse = np.broadcast_to(np.eye(SHAPE.v_dim, dtype=np.float32), (SHAPE.layers, 1, SHAPE.v_dim, SHAPE.v_dim)).copy()
    inverse[1, 0, 4, 4] = 2
    code, message = refused(space, transforms.identity(SHAPE, v_inverse=inverse))
    assert code == "INVALID_ARGUMENT"
    assert "layer 1, V" in message and "head 0" in message and "does not invert" in message and "is 1," in message


def test_numbers_that_are_not_finite(space):
    offset = np.zeros((SHAPE.layers, 1, SHAPE.k_dim), np.float32)
    offset[2, 0, 3] = np.nan
    code, message = refused(space, transforms.identity(SHAPE, k_offset=offset))
    assert code == "INVALID_ARGUMENT" and "layer 2, K" in message and "finite" in message


@pytest.mark.parametrize("shape", [Shape(layers=2), Shape(heads=4), Shape(k_dim=32), Shape(v_dim=16)])
def test_other_geometry_is_refused_when_the_namespace_is_opened(space, open_space, shape):
    file = transforms.identity(shape)
    space.upload(file, transforms.hash_of(file))
    code, message = error_of(lambda: open_space("misfit", transform_hash=transforms.hash_of(file)))
    assert code == "FAILED_PRECONDITION"
    assert f"is for {shape.layers} layers, {shape.heads} KV heads" in message and "has 3, 2, 16 and 48" in message


def test_other_geometry_is_refused_when_the_set_comes_after(open_space):
    file = transforms.identity(Shape(layers=4))
    space = open_space(transform_hash=transforms.hash_of(file))
    space.upload(file, transforms.hash_of(file))
    packed, _ = packed_page(SHAPE, 0)
    for call in (lambda: space.get([key_of("k")], form=space.v1.DECODED),
                 lambda: space.put([space.item(key_of("k"), packed)], [packed.data])):
        code, message = error_of(call)
        assert code == "FAILED_PRECONDITION" and "4 layers" in message


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_truncated_file(space, kept):
    file = transforms.identity(SHAPE)
    code, message = refused(space, file[:kept])
    assert code == "INVALID_ARGUMENT" and message
    code, message = refused(space, file[:kept], announced_bytes=len(file))
    assert code == "INVALID_ARGUMENT" and f"announced {len(file)} bytes, {len(file[:kept])} came" in message


def test_wrong_hash_names_both(space):
    file = transforms.identity(SHAPE)
    code, message = refused(space, file, digest=b"\x01" * 32)
    assert code == "INVALID_ARGUMENT"
    assert "01" * 32 in message and transforms.hash_of(file).hex() in message


def test_more_than_was_announced(space):
    file = transforms.identity(SHAPE, k_clip_ratio=np.full((SHAPE.layers, 1), 0.8, np.float32))
    code, message = refused(space, file, announced_bytes=5000)
    assert code == "INVALID_ARGUMENT" and "announced 5000 bytes, 8192 came" in message


@pytest.mark.parametrize("size", [1 << 20, 2 ** 64 - 1])
def test_more_than_there_is_room_for(space, size):
    code, message = refused(space, b"", digest=b"\x02" * 32, announced_bytes=size)
    assert code == "RESOURCE_EXHAUSTED" and str(size) in message and str(1 << 20) in message


def test_hostile_files(space):
    header = b'{"k.forward":{"dtype":"F32","shape":[4294967295,1,256,256],"data_offsets":[0,1125899906580480]}}'
    for file in (b"\xff" * 64, (2 ** 63).to_bytes(8, "little") + b"{}", len(header).to_bytes(8, "little") + header):
        assert refused(space, file)[0] == "INVALID_ARGUMENT"


def test_messages_out_of_order(space):
    v1 = space.v1
    header = v1.PutTransformSetRequest(header=v1.TransformSetHeader(hash=b"\x03" * 32, bytes=10))
    short = v1.PutTransformSetRequest(header=v1.TransformSetHeader(hash=b"\x03" * 31, bytes=10))
    data = v1.PutTransformSetRequest(data=b"x")
    for messages, expected in (([], "none came"), ([data], "data came"), ([header, header], "second one"),
                               ([short], "found 31")):
        code, message = error_of(lambda: space.cache.PutTransformSet(iter(messages)))
        assert code == "INVALID_ARGUMENT" and expected in message


def test_set_that_namespaces_need_is_not_deleted(open_space):
    file = transforms.identity(SHAPE, k_clip_ratio=np.full((SHAPE.layers, 1), 0.8, np.float32))
    digest = transforms.hash_of(file)
    space = open_space(transform_hash=digest)
    space.upload(file, digest)
    packed, wide = packed_page(SHAPE, 1)
    assert space.put([space.item(key_of("k"), packed)], [packed.data])[0].status == space.v1.OK
    request = space.v1.DeleteTransformSetRequest(hash=digest)
    code, message = error_of(lambda: space.admin.DeleteTransformSet(request))
    assert code == "FAILED_PRECONDITION"
    assert digest.hex() in message and space.opened.fingerprint.hex() in message and space.spec.model in message
    assert bytes(space.get([key_of("k")], form=space.v1.DECODED)[0][0][1]) == wide.data


def test_set_that_nobody_needs_is_deleted(space):
    file = transforms.identity(SHAPE, k_clip_ratio=np.full((SHAPE.layers, 1), 0.7, np.float32))
    digest = transforms.hash_of(file)
    space.upload(file, digest)
    request = space.v1.DeleteTransformSetRequest(hash=digest)
    assert space.admin.DeleteTransformSet(request).existed
    assert not space.admin.DeleteTransformSet(request).existed
    assert error_of(lambda: download(space, digest))[0] == "NOT_FOUND"
    assert not space.upload(file, digest).existed  # and may come again
