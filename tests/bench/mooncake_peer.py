"""Mooncake Store, measured as transfer_bench measures the others; the same lines of JSON. Runs in the environment of the
bench's peers (./run bench transfer makes it).

    mooncake_peer.py segment MASTER PORT BYTES          lends memory to the store until it is killed
    mooncake_peer.py measure MASTER PORT PAGE_BYTES CONNECTIONS BATCHES SECONDS SET_BYTES
"""

import ctypes
import json
import mmap
import os
import random
import sys
import threading
import time

from mooncake.store import MooncakeDistributedStore

VERIFY_EVERY = 32


def connect(master, port, lent, buffer):
    store = MooncakeDistributedStore()
    status = store.setup(f"127.0.0.1:{port}", "P2PHANDSHAKE", lent, buffer, "tcp", "", master)
    if status != 0:
        sys.exit(f"mooncake_peer: setup returned {status}")
    return store


class Room:
    """Registered memory."""

    def __init__(self, store, size):
        self.bytes = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        if store.register_buffer(self.address, size) != 0:
            sys.exit("mooncake_peer: register_buffer failed")


def run(store, work, keys, pages, page_bytes, batch, seconds, seed, shares):
    room, picked = Room(store, batch * page_bytes), random.Random(seed)
    share = {"us": [], "busy": 0.0, "failed": 0, "verified": 0, "mismatched": 0}
    places = range(0, len(keys) - batch + 1, batch)
    at, sizes = [room.address + i * page_bytes for i in range(batch)], [page_bytes] * batch
    end, calls = time.perf_counter() + seconds, 0
    while calls == 0 or time.perf_counter() < end:
        first = picked.choice(places)
        names = keys[first:first + batch]
        if work == "put":
            for i in range(batch):
                room.bytes[i * page_bytes:(i + 1) * page_bytes] = pages[first + i]
            names = [f"{name}-{seed}-{calls}" for name in names]
        start = time.perf_counter()
        if work == "get":
            good = store.batch_get_into(names, at, sizes) == sizes
        else:
            good = store.batch_put_from(names, at, sizes) == [0] * batch
        took = time.perf_counter() - start
        share["busy"] += took
        if good:
            share["us"].append(took * 1e6)
        else:
            share["failed"] += 1
        if work == "get" and good and calls % VERIFY_EVERY == 0:
            share["verified"] += 1
            share["mismatched"] += room.bytes[:] != b"".join(pages[first:first + batch])
        if work == "put":
            for name in names:
                store.remove(name)
        calls += 1
    store.unregister_buffer(room.address)
    shares.append(share)


def measure(master, port, page_bytes, connections, batches, seconds, set_bytes):
    store = connect(master, port, 0, 64 << 20)
    pages = [os.urandom(page_bytes) for _ in range(set_bytes // page_bytes)]
    keys = [f"page-{page_bytes}-{i}" for i in range(len(pages))]
    for key, page in zip(keys, pages):
        if store.put(key, page) != 0:
            sys.exit(f"mooncake_peer: put of {key} failed")
    for work in ("get", "put"):
        for threads in connections:
            for batch in batches:
                shares = []
                running = [threading.Thread(target=run, args=(store, work, keys, pages, page_bytes, batch, seconds, i, shares))
                           for i in range(threads)]
                for thread in running:
                    thread.start()
                for thread in running:
                    thread.join()
                us = sorted(time for share in shares for time in share["us"])

                def quantile(part):
                    return us[min(int(part * len(us)), len(us) - 1)] if us else 0.0
                print(json.dumps({
                    "work": work, "page_bytes": page_bytes, "connections": threads, "batch": batch, "checksum": False,
                    "calls": len(us), **{name: sum(share[name] for share in shares) for name in ("failed", "verified", "mismatched")},
                    "bytes_per_second": sum(len(share["us"]) * batch * page_bytes / share["busy"] for share in shares),
                    "p50_us": quantile(.5), "p99_us": quantile(.99), "p999_us": quantile(.999), "max_us": quantile(1.0)}), flush=True)
    os._exit(0)  # its own end waits for its metadata


def main():
    if sys.argv[1] == "segment":
        lent = connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), 16 << 20)  # for as long as it is there
        print("listening on it", flush=True)
        threading.Event().wait()
        del lent
    master, port, page_bytes, connections, batches, seconds, set_bytes = sys.argv[2:]
    measure(master, int(port), int(page_bytes), [int(i) for i in connections.split(",")], [int(i) for i in batches.split(",")],
            float(seconds), int(set_bytes))


if __name__ == "__main__":
    main()
