"""Pages between a model's paged cache and a namespace of the store: `push` and `fetch` as the namespace has
them, without the cache."""

import functools

import oscarkv


class HostTransfers:
    """Of a PagedCache."""

    def __init__(self, namespace, _, cache):
        kv = oscarkv.PagedKv(cache.k, cache.v)
        self.push = functools.partial(namespace.push, kv)
        self.fetch = functools.partial(namespace.fetch, kv)


class GpuTransfers:
    """Of a TorchCache: the GPU encodes and decodes, and encoded pages cross the bus."""

    def __init__(self, namespace, transforms, cache):
        import torch
        from oscarkv import gpu

        kv = gpu.PagedKv(*(side.flatten(1, 2) for side in (cache.k, cache.v)))
        pages = -(-cache.k.shape[1] * cache.k.shape[2] // namespace.spec.geometry.page_tokens)
        worker = gpu.Worker(namespace, transforms, pages_max=pages)
        stream = torch.cuda.current_stream()
        self.push = functools.partial(worker.push, kv, stream=stream)
        self.fetch = functools.partial(worker.fetch, kv, stream=stream)
