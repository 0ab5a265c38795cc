"""One namespace of a server as a plain program sees it: thin helpers over the generated stubs."""

import queue

import grpc

from . import pages

TIMEOUT_S = 30
HOST = 2  # of Tier


class Space:
    """Opens the namespace `model`; calls carry its fingerprint. `v1`: the generated messages and stubs."""

    def __init__(self, v1, channel, model, shape=pages.Shape(), transform_hash=b"", sink_tokens=0, recent_tokens=256,
                 store_wide=0, create=True, tenant=""):
        self.v1, self.shape = v1, shape
        self.channel = channel
        self.cache, self.admin = v1.KvCache(channel), v1.Admin(channel)
        self.spec = v1.NamespaceSpec(
            tenant=tenant, model=model,
            geometry=v1.Geometry(layers=shape.layers, kv_heads=shape.heads, k_head_dim=shape.k_dim,
                                 v_head_dim=shape.v_dim, page_tokens=shape.tokens, dtype=v1.FP32),
            codec=v1.CodecSpec(params=v1.PARAMS_FP32, transform_hash=transform_hash, sink_tokens=sink_tokens,
                               recent_tokens=recent_tokens))
        request = v1.OpenNamespaceRequest(spec=self.spec, create=create, store_wide=store_wide)
        self.opened = self.cache.OpenNamespace(request, timeout=TIMEOUT_S)
        self.scope = v1.Scope(fingerprint=self.opened.fingerprint, server_epoch=self.opened.server_epoch)

    def item(self, key, page, parent=b"", first_position=0):
        return self.v1.PutItem(key=key, parent=parent, first_position=first_position, encoding=page.encoding,
                               bytes=len(page.data), block_crc32c=page.crcs)

    def header(self, items):
        return self.v1.PutRequest(header=self.v1.PutHeader(scope=self.scope, items=items))

    def chunks(self, item, data, chunk_bytes=512):
        for offset in range(0, len(data), chunk_bytes):
            part = data[offset:offset + chunk_bytes]
            yield self.v1.PutRequest(chunk=self.v1.Chunk(item=item, offset=offset, data=part))

    def put(self, items, datas, **options):
        """Puts the items with their bytes; None sends none. The results."""
        def messages():
            yield self.header(items)
            for number, data in enumerate(datas):
                if data is not None:
                    yield from self.chunks(number, data, **options)
        return self.cache.Put(messages(), timeout=TIMEOUT_S).results

    def put_sequence(self, keys, some_pages):
        """Puts the pages of one sequence."""
        items = [self.item(key, page, keys[i - 1] if i else b"", i * self.shape.tokens)
                 for i, (key, page) in enumerate(zip(keys, some_pages))]
        return self.put(items, [page.data for page in some_pages])

    def get(self, keys, **fields):
        """Fetches: a list of (item message, bytes), and the end."""
        found, end = [], None
        for reply in self.cache.Get(self.v1.GetRequest(scope=self.scope, keys=keys, **fields), timeout=TIMEOUT_S):
            part = reply.WhichOneof("part")
            if part == "item":
                assert reply.item.item == len(found)
                found.append((reply.item, bytearray()))
            elif part == "chunk":
                data = found[-1][1]
                assert (reply.chunk.item, reply.chunk.offset) == (len(found) - 1, len(data))
                data += reply.chunk.data
            else:
                end = reply.end
        return found, end

    def lookup(self, keys, **fields):
        return self.cache.Lookup(self.v1.LookupRequest(scope=self.scope, keys=keys, **fields), timeout=TIMEOUT_S)

    def each(self, keys):
        """The status of every key."""
        return [page.status for page in self.lookup(keys, mode=self.v1.LookupRequest.EACH).pages]

    def call(self, method, keys):
        """Touch or Delete: the statuses."""
        request = self.v1.KeysRequest(scope=self.scope, keys=keys)
        return [result.status for result in getattr(self.cache, method)(request, timeout=TIMEOUT_S).results]

    def clear(self):
        return self.cache.Clear(self.v1.ClearRequest(scope=self.scope), timeout=TIMEOUT_S)

    def stats(self):
        return self.admin.Stats(self.v1.StatsRequest(), timeout=TIMEOUT_S)

    def upload(self, file, announced_hash, announced_bytes=None):
        """Uploads a transform set in chunks of 4 KiB."""
        def messages():
            size = len(file) if announced_bytes is None else announced_bytes
            yield self.v1.PutTransformSetRequest(header=self.v1.TransformSetHeader(hash=announced_hash, bytes=size))
            for offset in range(0, len(file), 4096):
                yield self.v1.PutTransformSetRequest(data=file[offset:offset + 4096])
        return self.cache.PutTransformSet(messages(), timeout=TIMEOUT_S)


class Session:
    """A session stream that is open while the block runs."""

    def __init__(self, space):
        self._sent = queue.SimpleQueue()
        self._sent.put(space.v1.SessionRequest(client_name="test"))
        self.stream = space.cache.Session(iter(self._sent.get, None))
        self._space = space

    def __enter__(self):
        self.id = next(self.stream).session_id
        return self

    def send(self, request):
        self._sent.put(request)

    def end(self):
        self._sent.put(None)
        assert list(self.stream) == []

    def __exit__(self, *_):
        self.stream.cancel()
        self._sent.put(None)


def held(stats):
    """What a call may not leave behind."""
    [tier] = [tier for tier in stats.tiers if tier.tier == HOST]
    return {"used_bytes": tier.used_bytes, "leased_bytes": tier.leased_bytes, "leases": stats.leases,
            "sessions": stats.sessions, "inflight_bytes": stats.inflight_bytes}


def error_of(call):
    """The status code and message of a call that must fail; the call may be a stream."""
    try:
        answer = call()
        list(answer) if hasattr(answer, "__iter__") else None
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call went through")
