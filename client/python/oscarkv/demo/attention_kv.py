"""What a decode step attends over on a GPU: 2-bit pages as they are, or BF16 rows that lie contiguous.

Both take a new token of each request into their memory and attend over everything, that token too.
"""

import dataclasses

import numpy as np

import oscarkv

from .torch_model import time_us, torch


class ContiguousKv:
    """K and V [layers, requests, kv_heads, tokens, dim] in BF16, without a page table, the last token
    still to be written. Of PyTorch's attention kernels one is used, `backend`."""

    def __init__(self, k, v, backend=None):
        self.k, self.v = k, v
        self.backend = backend

    @property
    def nbytes(self):
        return self.k.nbytes + self.v.nbytes

    def attend(self, layer, q, k, v):
        """q [requests, heads, dim]; the new tokens' k and v [requests, kv_heads, dim]."""
        self.k[layer, :, :, -1] = k
        self.v[layer, :, :, -1] = v
        with torch.nn.attention.sdpa_kernel(self.backend):
            out = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, None], self.k[layer], self.v[layer], enable_gqa=True)
        return out[:, :, 0]

    def choose(self, *rows):
        """Settles on the kernel that is fastest for `attend`'s rows; returns its name."""
        found = {}
        for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            self.backend = getattr(torch.nn.attention.SDPBackend, name)
            try:
                found[name] = time_us(
                    lambda: [self.attend(layer, *rows) for layer in range(len(self.k))])
            except RuntimeError:  # not for this shape
                torch.cuda.synchronize()
        best = min(found, key=found.get)
        self.backend = getattr(torch.nn.attention.SDPBackend, best)
        return best


@dataclasses.dataclass(frozen=True)
class Page:
    data: np.ndarray
    position: int
    tokens: int  # in use
    encoding: str


def sequence_pages(codec, geometry, setting, k, v):
    """The pages of a sequence whose K and V are numpy's [layers, tokens, kv_heads, dim] in the bits of
    BF16, with room for one more token: sinks, the last `recents[0]` tokens and the new one WIDE."""
    size, known = geometry.page_tokens, k.shape[1]
    kv = oscarkv.PagedKv(k, v)
    pages = []
    for first in range(0, known + 1, size):
        end = min(first + size, known)
        wide = first < setting.sink_tokens or first + size > known - setting.recents[0]
        slots = np.zeros(size, np.int64)  # what is not in use may be anything
        slots[:end - first] = np.arange(first, end)
        encoding = "wide" if wide else "packed"
        data, _ = codec.encode(kv, slots, encoding)
        pages.append(Page(data, first, min(size, known + 1 - first), encoding))
    return pages


class PackedKv:
    """The same pages for each of `requests`, each time in memory of their own."""

    def __init__(self, geometry, pages, requests, device):
        sizes = [page.data.nbytes for page in pages]
        *offsets, end = (int(at) for at in np.cumsum([0, *(-(-size // 256) * 256 for size in sizes)]))
        self.memory = torch.empty((requests, end), dtype=torch.uint8, device=device)
        for page, size, offset in zip(pages, sizes, offsets):
            self.memory[0, offset:offset + size] = torch.from_numpy(page.data)
        self.memory[1:] = self.memory[0]
        # The last page is WIDE: a block is K [page_tokens, dim], then V.
        tail = self.memory[:, offsets[-1]:offsets[-1] + sizes[-1]].view(torch.bfloat16)
        self._new = tail.view(requests, geometry.layers, geometry.kv_heads, 2, geometry.page_tokens,
                              geometry.k_head_dim)[..., pages[-1].tokens - 1, :]
        self.length = pages[-1].position + pages[-1].tokens
        starts = self.memory.data_ptr() + np.arange(requests) * end
        self.addresses = (starts[:, None] + np.array(offsets)).ravel()
        self.pages = pages * requests
        self.first_page = np.arange(requests + 1) * len(pages)

    @property
    def nbytes(self):
        return self.memory.nbytes

    def write(self, layer, k, v):
        """Puts the new tokens' k and v [requests, kv_heads, dim] in their place."""
        self._new[:, layer, :, 0] = k
        self._new[:, layer, :, 1] = v


class PackedAttention:
    """Attends over a PackedKv with `heads` query heads."""

    def __init__(self, kv, geometry, spec, transforms, heads):
        from oscarkv import _gpu  # only where there is CUDA

        self._kv = kv
        self._attention = _gpu.Attention(geometry, spec, transforms, heads)
        table = _gpu.page_table(kv.addresses, [page.position for page in kv.pages],
                                [page.tokens for page in kv.pages],
                                [page.encoding == "packed" for page in kv.pages])
        requests = len(kv.first_page) - 1
        self._pages = self._put(table, torch.uint8)
        self._first = self._put(kv.first_page, torch.int32)
        self._lengths = self._put([kv.length] * requests, torch.int32)
        # Zeros make it fit for its first call.
        self._workspace = self._put(np.zeros(self._attention.workspace_bytes(requests)), torch.uint8)

    def _put(self, values, dtype):
        return torch.tensor(values, dtype=dtype, device=self._kv.memory.device)

    def attend(self, layer, q, k, v):
        self._kv.write(layer, k, v)
        q = q.contiguous()
        out = torch.empty_like(q)
        self._attention.attend(
            layer=layer, requests=len(q), softmax_scale=q.shape[-1] ** -0.5,
            pages=self._pages.data_ptr(), first_page=self._first.data_ptr(),
            lengths=self._lengths.data_ptr(), queries=q.data_ptr(), output=out.data_ptr(),
            workspace=self._workspace.data_ptr(), workspace_bytes=self._workspace.nbytes,
            stream=torch.cuda.current_stream().cuda_stream)
        return out
