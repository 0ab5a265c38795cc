"""A worker of the end-to-end tests: a paged cache and a client. Requests come and answers go as JSON lines.

    worker.py ENDPOINT [TIMEOUT_MS]

The K and V of a page are made from its key, so that every process knows what every page should hold.
"""

import hashlib
import json
import sys

import numpy as np

import oscarkv

LAYERS, HEADS, DIM, PAGE_TOKENS, BLOCK_TOKENS, BLOCKS = 2, 2, 32, 32, 16, 64
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="fp32")
TRANSFORMS = oscarkv.TransformSet.hadamard(GEOMETRY, k_clip=0.96, v_clip=0.92)
CODEC = oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash, sink_tokens=32, recent_tokens=32)
SPEC = oscarkv.NamespaceSpec("end-to-end", GEOMETRY, CODEC)


class Cache:
    """A paged cache in which a sequence lies in blocks that are all over the place."""

    def __init__(self, seed):
        self.k = np.full((LAYERS, BLOCKS, BLOCK_TOKENS, HEADS, DIM), np.nan, np.float32)
        self.v = self.k.copy()
        self.kv = oscarkv.PagedKv(self.k, self.v)
        self._blocks = np.random.default_rng(seed).permutation(BLOCKS)

    def slots(self, pages):
        blocks = self._blocks[:pages * PAGE_TOKENS // BLOCK_TOKENS]
        return (blocks[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).ravel()

    def rows(self, pages):
        """[2, layers, tokens, heads, dim]: what lies at the sequence's slots."""
        slots = self.slots(pages)
        return np.stack([side.reshape(LAYERS, -1, HEADS, DIM)[:, slots] for side in (self.k, self.v)])

    def fill(self, keys):
        slots = self.slots(len(keys)).reshape(len(keys), PAGE_TOKENS)
        for key, page in zip(keys, slots):
            made = np.random.default_rng(int.from_bytes(key[:8], "big"))
            for side in (self.k, self.v):
                rows = made.normal(size=(LAYERS, PAGE_TOKENS, HEADS, DIM))
                side.reshape(LAYERS, -1, HEADS, DIM)[:, page] = rows


def keys_of(pages, text="shared", parent=b""):
    tokens = np.frombuffer(hashlib.shake_128(text.encode()).digest(pages * PAGE_TOKENS * 2), np.uint16)
    return oscarkv.chain_keys(tokens.astype(np.uint32), PAGE_TOKENS, parent)


def encodings_of(pages):
    """As whole sequences are pushed: a page of sinks, and the recent window."""
    return ["wide"] + ["packed"] * (pages - 2) + ["wide"]


def expected_rows(keys, encodings):
    """What a reader should find: every page encoded and decoded in this process."""
    codec = oscarkv.PageCodec(GEOMETRY, CODEC, TRANSFORMS)
    cache = Cache(seed=99)
    cache.fill(keys)
    slots = cache.slots(len(keys)).reshape(len(keys), PAGE_TOKENS)
    for encoding, page in zip(encodings, slots):
        codec.decode(*codec.encode(cache.kv, page, encoding), cache.kv, page, encoding)
    return cache.rows(len(keys))


class Worker:
    def __init__(self, endpoint, timeout_ms=5000):
        self._client = oscarkv.Client(endpoint, timeout_ms=timeout_ms, name="end-to-end")
        self._space = self._client.open(SPEC, transforms=TRANSFORMS)
        self._hit = None

    def push(self, pages, text="shared"):
        keys = keys_of(pages, text)
        cache = Cache(seed=1)
        cache.fill(keys)
        report = self._space.push(cache.kv, cache.slots(pages), keys)
        return {"statuses": report.statuses, "error": report.error, "bytes_wire": report.bytes_wire,
                "bytes_model": report.bytes_model, "path": report.path, "wide": report.wide_pages, "packed": report.packed_pages}

    def lookup(self, pages, text="shared", lease=False):
        self._hit = self._space.lookup(keys_of(pages, text), lease=lease)
        return {"pages": self._hit.pages, "encodings": self._hit.encodings, "error": self._hit.error,
                "lease": self._hit.lease}

    def fetch(self, pages, text="shared"):
        """Fetches: `right` says whether what came is what should be there, `untouched` whether the rest is as it was."""
        keys = keys_of(pages, text)
        cache = Cache(seed=2)
        report = self._space.fetch(cache.kv, cache.slots(pages), keys, hit=self._hit)
        found = cache.rows(pages)
        tokens = report.pages * PAGE_TOKENS
        expected = expected_rows(keys[:report.pages], self._hit.encodings[:report.pages])
        right = bool(np.array_equal(found[:, :, :tokens], expected))
        return {"pages": report.pages, "right": right, "untouched": bool(np.isnan(found[:, :, tokens:]).all()),
                "statuses": report.statuses, "error": report.error, "bytes_wire": report.bytes_wire, "path": report.path}

    def fetch_often(self, pages, times):
        """Pushes what is not there and fetches, again and again: how many pages came, how many fetches were cut short because
        the server had taken pages back, and how many brought what should not be there."""
        keys = keys_of(pages)
        self.push(pages)
        expected = expected_rows(keys, encodings_of(pages))
        seen = {"pages": 0, "fenced": 0, "wrong": 0}
        for _ in range(times):
            cache = Cache(seed=2)
            report = self._space.fetch(cache.kv, cache.slots(pages), keys)
            tokens = report.pages * PAGE_TOKENS
            seen["pages"] += report.pages
            seen["fenced"] += "FENCED" in report.statuses
            seen["wrong"] += not np.array_equal(cache.rows(pages)[:, :, :tokens], expected[:, :, :tokens])
            if report.pages < pages:
                self.push(pages)
        return seen

    def turns(self, pages, texts):
        """All that a worker does, of each text. `right`: whether every fetch brought what it should, and nothing else."""
        right = True
        for text in texts:
            self.push(pages, text)
            self.lookup(pages, text, lease=True)
            if self._hit.pages:
                fetched = self.fetch(pages, text)
                right = right and fetched["right"] and fetched["untouched"]
            self._hit.release()
        return {"right": right}

    def counters(self):
        return self._client.counters


def main():
    worker = Worker(sys.argv[1], *map(int, sys.argv[2:]))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
