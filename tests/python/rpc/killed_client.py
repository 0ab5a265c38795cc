"""A client that will be killed: holds a session with a lease on one page, and a put that is half sent.

    python -m rpc.killed_client ENDPOINT STUBS MODEL      prints "ready" and waits
"""

import queue
import sys

import grpc

from . import stubs
from .pages import Shape, key_of, wide_page
from .store import Session, Space


def main(endpoint, folder, model):
    space = Space(stubs.load(folder), grpc.insecure_channel(endpoint), model)
    page = wide_page(Shape(), 0)
    space.put([space.item(key_of("leased"), page)], [page.data])
    session = Session(space).__enter__()
    assert space.lookup([key_of("leased")], lease=True, session_id=session.id).lease_id
    sent = queue.SimpleQueue()
    for message in (space.header([space.item(key_of("half"), page)]), next(space.chunks(0, page.data))):
        sent.put(message)
    put = space.cache.Put.future(iter(sent.get, None))
    while space.stats().inflight_bytes == 0:
        assert not put.done()
    print("ready", flush=True)
    put.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
