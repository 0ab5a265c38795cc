"""A worker process: a model with its own paged cache, and a client of the store.

Reads requests from standard input and answers on standard output, one JSON object a line:

    {"do": "push", "prompt": [...]}                       prefill the prompt, push its pages
    {"do": "ask", "prompt": [...], "reuse": "take" | "recompute" | "nothing",
     "generate": N, "follow": [...]}                      look up, fetch, prefill the rest, answer

A progress line is {"done": tokens}; the last line of an answer {"result": {...}}.
`reuse: nothing` computes everything; what it found is kept as the exact answer, and later requests for the
same prompt report their divergence from it over the tokens `follow` (the exact answer's own).
"""

import argparse
import json
import sys
import time

import numpy as np

import oscarkv

from . import gguf_weights, metrics
from .model import Model
from .paged_cache import BLOCK_TOKENS, Sequence
from .quality import compare_hidden
from .tokenizer import Tokenizer
from .transfers import GpuTransfers, HostTransfers


class Worker:
    def __init__(self, model, cache, namespace, transfers, page_tokens, stops, progress):
        """`transfers` pushes and fetches between the cache and the namespace."""
        self._model = model
        self._cache = cache
        self._namespace = namespace
        self._transfers = transfers
        self._page_tokens = page_tokens
        self._stops = stops
        self._progress = progress
        self._exact = {}  # prompt -> Exact

    def warm_up(self):
        """So that no request pays for what the first one must."""
        sequence = Sequence(self._cache)
        tokens = [0] * min(self._model.warm_up_tokens, self._cache.blocks * BLOCK_TOKENS)
        self._model.logits(self._model.prefill(tokens, sequence)[-1:])
        sequence.free()

    def push(self, prompt):
        sequence = Sequence(self._cache)
        start = time.monotonic()
        hidden = self._model.prefill(prompt, sequence, progress=self._progress)
        first = int(self._model.logits(hidden[-1:])[0].argmax())
        ready = time.monotonic()
        keys = oscarkv.chain_keys(np.array(prompt, np.uint32), self._page_tokens)
        covered = len(keys) * self._page_tokens
        report = self._transfers.push(sequence.slots(0, covered), keys, end_position=len(prompt))
        pushed = time.monotonic()
        sequence.free()
        statuses = [str(status) for status in report.statuses]
        return {"tokens": len(prompt), "tokens_pushed": covered, "pages": len(keys),
                "wide_pages": report.wide_pages, "packed_pages": report.packed_pages,
                "bytes_wire": report.bytes_wire, "bytes_model": report.bytes_model,
                "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
                "ttft_s": ready - start, "push_s": pushed - ready, "first_token": first}

    def ask(self, prompt, reuse, generate, follow):
        sequence = Sequence(self._cache)
        sequence.reserve(len(prompt))
        start = time.monotonic()
        found = self._reuse(prompt, sequence, reuse) if reuse != "nothing" else {}
        fetched = time.monotonic()
        hidden = self._model.prefill(prompt[sequence.length:], sequence, progress=self._progress)
        first = int(self._model.logits(hidden[-1:])[0].argmax())
        ready = time.monotonic()
        end = sequence.length
        answer = self._model.generate(hidden[-1], sequence, generate, self._stops)
        generated = time.monotonic()
        result = {"tokens": len(prompt), "tokens_reused": 0, "bytes_wire": 0, **found,
                  "ttft_s": ready - start, "prefill_s": ready - fetched, "first_token": first,
                  "answer": answer, "generate_s": generated - ready}
        sequence.truncate(end)
        result["divergence"] = self._follow(prompt, hidden[-1:], sequence, reuse, follow or answer)
        sequence.free()
        return result

    def _reuse(self, prompt, sequence, tail):
        """Looks the prompt up and fetches what the store has of it into `sequence`."""
        start = time.monotonic()
        keys = oscarkv.chain_keys(np.array(prompt, np.uint32), self._page_tokens)
        # The last token has to be computed, for its output.
        keys = keys[:(len(prompt) - 1) // self._page_tokens]
        hit = self._namespace.lookup(keys, tail=tail)
        looked = time.monotonic()
        pages = hit.usable_tokens // self._page_tokens
        result = {"pages_found": hit.pages, "lookup_s": looked - start, "tokens_reused": 0,
                  "encodings": [str(encoding) for encoding in hit.encodings[:pages]]}
        if pages:
            slots = sequence.slots(0, pages * self._page_tokens)
            report = self._transfers.fetch(slots, keys[:pages], hit=hit)
            sequence.length = report.pages * self._page_tokens
            result |= {"tokens_reused": sequence.length, "bytes_wire": report.bytes_wire}
        return result | {"fetch_s": time.monotonic() - looked}

    def _follow(self, prompt, last_hidden, sequence, reuse, follow):
        """Divergence from the exact answer over the tokens that follow the prompt."""
        if not follow:
            return None
        rest = self._model.prefill(follow[:-1], sequence) if len(follow) > 1 else last_hidden[:0]
        hidden = np.concatenate([last_hidden, rest])
        if reuse == "nothing":
            self._exact[tuple(prompt)] = metrics.exact_distributions(self._model.logits(hidden), follow)
        exact = self._exact.get(tuple(prompt))
        if exact is None or len(exact.targets) != len(hidden):
            return None
        total = compare_hidden(self._model, hidden, exact)
        return {"positions": total.positions, "top1": 100.0 * total.agreements / total.positions,
                "kl": (total.kl_first + total.kl_rest) / total.positions}


def _classes(device):
    """What makes a model there, and its transfers."""
    if device == "cpu":
        return Model, HostTransfers
    from .torch_model import TorchModel
    return TorchModel, GpuTransfers


def _arguments():
    parser = argparse.ArgumentParser(prog="oscarkv.demo.worker", description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", required=True, help="folder that gguf_weights.save wrote")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--transforms", required=True, help="transform set file")
    parser.add_argument("--page-tokens", type=int, required=True)
    parser.add_argument("--sink-tokens", type=int, required=True)
    parser.add_argument("--recent-tokens", type=int, required=True)
    parser.add_argument("--cache-tokens", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def main():
    arguments = _arguments()

    def say(message):
        print(json.dumps(message), flush=True)

    loaded = gguf_weights.load_saved(arguments.model)
    config = loaded.config
    transforms = oscarkv.TransformSet.load(arguments.transforms)
    geometry = oscarkv.Geometry(config.layers, config.kv_heads, config.head_dim, config.head_dim,
                                arguments.page_tokens)
    codec = oscarkv.CodecSpec(transform_hash=transforms.hash, sink_tokens=arguments.sink_tokens,
                              recent_tokens=arguments.recent_tokens)
    with oscarkv.Client(arguments.endpoint, timeout_ms=10000, name=arguments.name) as client:
        namespace = client.open(oscarkv.NamespaceSpec(config.name, geometry, codec),
                                transforms=transforms)
        make_model, make_transfers = _classes(arguments.device)
        model = make_model(loaded)
        cache = model.cache(arguments.cache_tokens // BLOCK_TOKENS)
        worker = Worker(model, cache, namespace, make_transfers(namespace, transforms, cache),
                        arguments.page_tokens, Tokenizer(loaded.vocabulary).stops(), lambda done: say({"done": done}))
        worker.warm_up()
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "push":
                say({"result": worker.push(request["prompt"])})
            elif request["do"] == "ask":
                say({"result": worker.ask(request["prompt"], request["reuse"],
                                          request.get("generate", 0), request.get("follow"))})
            elif request["do"] == "stats":
                say({"result": client.stats()})
            else:
                raise ValueError(f"no request {request['do']!r}")


if __name__ == "__main__":
    main()
