"""What each way of holding a prefix does to the text that follows it: OSCAR.md's setting of a store.

A prefix is computed exactly, encoded into pages and decoded again by each method; then the tokens that
follow run exactly over it, and their next-token distributions are compared with those over the exact
prefix.
"""

import concurrent.futures
import dataclasses

import numpy as np

from . import metrics
from .paged_cache import PagedCache, Sequence

_LOGIT_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Setting:
    prefix: int = 1536
    tail: int = 512
    page_tokens: int = 64
    sink_tokens: int = 64
    recents: tuple = (256, 0)  # WIDE tokens at the prefix's end; a table for each

    @property
    def window(self):
        """Tokens of a window: the last one is only a target."""
        return self.prefix + self.tail + 1

    def encodings(self, recent):
        """The encoding of each page of the prefix."""
        for first in range(0, self.prefix, self.page_tokens):
            wide = first < self.sink_tokens or first + self.page_tokens > self.prefix - recent
            yield "wide" if wide else "packed"


class Evaluation:
    """Holds the model and one cache with two sequences: the exact one and the one that methods write
    to."""

    def __init__(self, model, setting):
        self.model = model
        self.setting = setting
        blocks = 2 * (-(-(setting.prefix + setting.tail) // 16) + 1)
        self.cache = PagedCache.for_model(model.config, blocks, "fp32")

    def run(self, windows, methods, progress=None):
        """{recent: {method: Divergence}}. `methods` maps a name to a function
        (cache, source_slots, target_slots, encoding) that encodes one page's slots and decodes them
        into others. Where every page is WIDE a method's name is "bf16" and its codec is never
        asked to pack."""
        totals = {recent: {name: metrics.Divergence() for name in methods}
                  for recent in self.setting.recents}
        for window in windows:
            exact_sequence = Sequence(self.cache)
            self.model.prefill(window[:self.setting.prefix], exact_sequence)
            exact = self._exact(window, exact_sequence)
            for name, transcode in methods.items():
                done = {}
                for recent in self.setting.recents:
                    pages = tuple("wide" if name == "bf16" else encoding
                                  for encoding in self.setting.encodings(recent))
                    if pages not in done:
                        done[pages] = self._one(window, exact_sequence, exact, transcode, pages)
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

    def _one(self, window, exact_sequence, exact, transcode, pages):
        sequence = Sequence(self.cache)
        sequence.reserve(self.setting.prefix)
        size = self.setting.page_tokens
        for index, encoding in enumerate(pages):
            span = index * size, (index + 1) * size
            transcode(self.cache, exact_sequence.slots(*span), sequence.slots(*span), encoding)
        sequence.length = self.setting.prefix
        hidden = self._tail(window, sequence)
        sequence.free()
        return compare_hidden(self.model, hidden, exact)


def compare_hidden(model, hidden, exact):
    """Divergence of the distributions that `hidden` [positions, width] leads to."""
    total = metrics.Divergence()
    for at in range(0, len(hidden), _LOGIT_ROWS):
        rows = slice(at, min(at + _LOGIT_ROWS, len(hidden)))
        total.add(metrics.compare(model.logits(hidden[rows]), exact, rows))
    return total
