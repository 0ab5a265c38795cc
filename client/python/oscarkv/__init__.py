"""oscarkv: share an LLM's KV cache between workers as 2-bit pages.

    client = oscarkv.Client("127.0.0.1:7411")
    space = client.open(oscarkv.NamespaceSpec("my-model", geometry, codec), transforms=transforms)
    space.push(kv, slots, keys)                      # a prefill worker
    hit = space.lookup(keys); space.fetch(kv, slots, keys[:hit.pages])   # a decode worker

Arrays are viewed in place and the interpreter lock is released during every call. Misuse raises ValueError; a store that is
dead or slow is a miss, never an exception.
"""

from oscarkv._native import (
    Client,
    CodecSpec,
    FetchReport,
    Geometry,
    Hit,
    Namespace,
    NamespaceSpec,
    PageCodec,
    PagedKv,
    PendingFetch,
    PersistReport,
    PushReport,
    RequestHints,
    TransformSet,
    __version__,
    chain_keys,
)

__all__ = [
    "Client", "CodecSpec", "FetchReport", "Geometry", "Hit", "Namespace", "NamespaceSpec", "PageCodec", "PagedKv",
    "PendingFetch", "PersistReport", "PushReport", "RequestHints", "TransformSet", "__version__", "chain_keys",
]
