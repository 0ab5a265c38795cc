"""Pushes from and fetches into KV caches in GPU memory: torch, cupy, anything with DLPack or __cuda_array_interface__.

    kv = oscarkv.gpu.PagedKv(k, v)                       # tensors [layers, slots, heads, dim], or a list of layers
    worker = oscarkv.gpu.Worker(space, transforms)       # takes its GPU memory, streams and pinned memory now
    worker.push(kv, slots, keys, stream=stream)          # after what the stream holds
    fetch = worker.start_fetch(kv, slots, keys[:hit.pages], hit=hit, stream=stream)
    for layer in range(layers):
        fetch.wait_layer(layer, stream)                  # the stream goes on when the layer is there
        ...                                              # enqueue the layer's work
    report = fetch.result()                              # whether it may be believed

The link carries encoded pages; the GPU encodes, verifies and decodes. Streams are integers, torch's or cupy's; None is
CUDA's default stream. Misuse raises ValueError, what goes wrong on the GPU RuntimeError (UNAVAILABLE: the device is lost);
a store that is dead or slow is a miss, as it is without a GPU.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import oscarkv

try:
    from oscarkv import _gpu
except ImportError as error:
    raise ImportError(f"oscarkv.gpu needs oscarkv built with CUDA (cmake --preset cuda, deploy/bundle): {error}") from error

if TYPE_CHECKING:
    from oscarkv._native import _Slots as Slots
else:
    Slots = Any

PagedKv = _gpu.PagedKv
Stream = Any  # int, torch.cuda.Stream, cupy.cuda.Stream, None

__all__ = ["Fetch", "PagedKv", "Stream", "Worker"]


_FOREVER_MS = 2**31 - 1  # every fetch ends at its own deadline, long before


class Fetch:
    """A fetch under way, made by Worker.start_fetch. With select or asyncio: fileno() is readable when layers have come and
    when it has ended."""

    def __init__(self, sink: _gpu.FetchSink, pending: oscarkv.PendingFetch) -> None:
        self._sink = sink
        self._pending = pending

    def wait_layer(self, layer: int, stream: Stream = None) -> None:
        """Has `stream` wait until the layer of the pages that came is in the cache; returns when that much has been
        enqueued. Nobody has looked at the pages then: use what was computed from them when result() says that they are
        whole. Raises RuntimeError or ValueError when the fetch ended before this layer."""
        self._sink.wait_layer(layer, stream)

    def result(self) -> oscarkv.FetchReport:
        """Waits for the end. Its first `pages` pages are whole in the cache; the slots of the others hold anything."""
        return self._pending.result(timeout_ms=_FOREVER_MS)

    @property
    def done(self) -> bool:
        return self._pending.done

    def cancel(self) -> None:
        """Ends it soon, whatever the store does."""
        self._pending.cancel()

    def fileno(self) -> int:
        return self._pending.fileno()


class Worker:
    """Transfers of one namespace on one device, one push and one fetch at a time. `transforms` is what the namespace was
    opened with. Makes all that it needs at once: for each direction `stages` stages of `stage_bytes` of GPU memory and as
    much pinned memory, and tables for `pages_max` pages, which is the longest transfer.

    `nccl`: the library ("libnccl.so.2") with which pages move between this GPU and a server's, where both have it; that
    takes as much GPU memory again for each direction, and two communicators. None: they go by other paths. A server on the
    same host needs none of it: its GPU's memory is read and written in place."""

    def __init__(self, space: oscarkv.Namespace, transforms: oscarkv.TransformSet | None = None, *, device: int = 0,
                 pages_max: int = 4096, stage_bytes: int = 16 << 20, stages: int = 4, nccl: str | None = None) -> None:
        self._space = space
        codec = _gpu.PageCodec(space.spec.geometry, space.spec.codec, transforms, device)
        self._sink = _gpu.FetchSink(codec, pages_max, stage_bytes, stages)
        self._source = _gpu.PushSource(codec, pages_max, stage_bytes, stages)
        if nccl is not None:
            self._sink.receive_over_nccl(nccl, stages, stage_bytes)
            self._source.send_over_nccl(nccl)
        self._running: oscarkv.PendingFetch | None = None

    def push(self, kv: PagedKv, slots: Slots, keys: Sequence[bytes], parent: bytes = b"", first_position: int = 0,
             end_position: int | None = None, *, stream: Stream = None) -> oscarkv.PushReport:
        """As Namespace.push; the cache is read after what `stream` holds now, and may be written again afterwards."""
        self._source.start(kv, slots, stream)
        return self._space._push_from(self._source.pages, keys, parent, first_position, end_position)

    def fetch(self, kv: PagedKv, slots: Slots, keys: Sequence[bytes], hit: oscarkv.Hit | None = None,
              layers: tuple[int, int] | None = None, heads: tuple[int, int] | None = None, *,
              stream: Stream = None) -> oscarkv.FetchReport:
        """As Namespace.fetch; the cache is written after what `stream` holds now."""
        return self.start_fetch(kv, slots, keys, hit, layers, heads, stream=stream).result()

    def start_fetch(self, kv: PagedKv, slots: Slots, keys: Sequence[bytes], hit: oscarkv.Hit | None = None,
                    layers: tuple[int, int] | None = None, heads: tuple[int, int] | None = None, *,
                    layers_at_once: int = 0, stream: Stream = None) -> Fetch:
        """The same, layer by layer, on a thread of the client's: the engine waits for a layer when it needs it. Layers come
        `layers_at_once` of them at most at a time; 0: in shares of the whole."""
        if self._running is not None and not self._running.done:
            raise ValueError("expected no fetch under way, found one: wait for its result, or make another worker")
        self._sink.start(kv, slots, layers, heads, stream)
        self._running = self._space._start_fetch_to(self._sink.pages, keys, hit, layers, heads, layers_at_once)
        return Fetch(self._sink, self._running)
