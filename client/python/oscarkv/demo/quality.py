"""What each way of holding a prefix does to the text that follows it.

A prefix is computed exactly, encoded into pages and decoded again by each method; then the tokens that
follow run exactly over it, and their next-token distributions are compared with those over the exact
prefix.
"""

import dataclasses

import oscarkv

from . import metrics
from .paged_cache import PagedCache, Sequence

_LOGIT_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Setting:
    prefix: int = 1536
    tail: int = 512
    page_tokens: int = 64
    sink_tokens: int = 64
    # WIDE tokens at the prefix's end; a table for each, those after the first of half the windows.
    recents: tuple = (256, 0)

    @property
    def window(self):
        """Tokens of a window: the last one is only a target."""
        return self.prefix + self.tail + 1

    def windows_of(self, recent, windows):
        """How many of `windows` the table of `recent` takes."""
        return windows if recent == self.recents[0] else -(-windows // 2)

    def encodings(self, recent):
        """The encoding of each page of the prefix."""
        for first in range(0, self.prefix, self.page_tokens):
            wide = first < self.sink_tokens or first + self.page_tokens > self.prefix - recent
            yield "wide" if wide else "packed"


def page_codec(config, setting, transforms, k_bits=2):
    """The product's codec for a model's cache; WIDE pages only when `transforms` is None."""
    geometry = oscarkv.Geometry(config.layers, config.kv_heads, config.head_dim, config.head_dim,
                                setting.page_tokens)
    spec = oscarkv.CodecSpec(k_bits=k_bits, transform_hash=transforms.hash if transforms else b"",
                             sink_tokens=setting.sink_tokens)
    return oscarkv.PageCodec(geometry, spec, transforms)


class Evaluation:
    """Holds the model and one cache with two sequences: the exact one and the one that methods write
    to."""

    def __init__(self, model, setting):
        self.model = model
        self.setting = setting
        blocks = 2 * (-(-(setting.prefix + setting.tail) // 16) + 1)
        self.cache = PagedCache.for_model(model.config, blocks, "fp32")
        self._kv = oscarkv.PagedKv(self.cache.k, self.cache.v)
        self._wide = page_codec(model.config, setting, None)

    def run(self, windows, methods, progress=None):
        """{recent: {method: Divergence}}. `methods` maps a name to an `oscarkv.PageCodec`, or to None
        for a cache that is WIDE throughout."""
        totals = {recent: {name: metrics.Divergence() for name in methods}
                  for recent in self.setting.recents}
        for index, window in enumerate(windows):
            recents = [recent for recent in self.setting.recents
                       if index < self.setting.windows_of(recent, len(windows))]
            exact_sequence = Sequence(self.cache)
            self.model.prefill(window[:self.setting.prefix], exact_sequence)
            exact = self._exact(window, exact_sequence)
            for name, codec in methods.items():
                done = {}
                for recent in recents:
                    pages = tuple("wide" if codec is None else encoding
                                  for encoding in self.setting.encodings(recent))
                    if pages not in done:
                        done[pages] = self._one(window, exact_sequence, exact, codec or self._wide, pages)
                    totals[recent][name].add(done[pages])
                    if progress:
                        progress(1)
            exact_sequence.free()
        return totals

    def _tail(self, window, sequence):
        end = self.setting.prefix + self.setting.tail
        return self.model.prefill(window[self.setting.prefix:end], sequence)

    def _exact(self, window, sequence):
        logits = self.model.logits(self._tail(window, sequence))
        sequence.truncate(self.setting.prefix)
        return metrics.exact_distributions(logits, window[self.setting.prefix + 1:])

    def _one(self, window, exact_sequence, exact, codec, pages):
        sequence = Sequence(self.cache)
        sequence.reserve(self.setting.prefix)
        size = self.setting.page_tokens

        def page(index):
            span = index * size, (index + 1) * size
            data, checksums = codec.encode(self._kv, exact_sequence.slots(*span), pages[index])
            codec.decode(data, checksums, self._kv, sequence.slots(*span), pages[index])

        self.model.run(page, range(len(pages)))
        sequence.length = self.setting.prefix
        hidden = self._tail(window, sequence)
        sequence.free()
        return compare_hidden(self.model, hidden, exact)


def compare_hidden(model, hidden, exact):
    """Divergence of the distributions that `hidden` [positions, width] leads to."""
    parts = []

    def compare(at):
        rows = slice(at, min(at + _LOGIT_ROWS, len(hidden)))
        parts.append(metrics.compare(model.logits_on_this_thread(hidden[rows]), exact, rows))

    model.run(compare, range(0, len(hidden), _LOGIT_ROWS))
    total = metrics.Divergence()
    for part in parts:
        total.add(part)
    return total
