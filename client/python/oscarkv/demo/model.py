"""The forward pass of a Llama-architecture model in numpy, over a paged KV cache.

Work is cut into tiles of rows that a few threads take in turn (numpy releases the GIL inside its
loops and inside BLAS), so the process should run with OPENBLAS_NUM_THREADS=1: see
`processes.blas_environment`.
"""

import concurrent.futures

import numpy as np

from .paged_cache import PagedCache

TILE_ROWS = 256       # rows of activations that one thread works on
CHUNK_TOKENS = 512    # tokens that prefill runs through all layers at a time
_ATTENTION_ROWS = 64  # queries whose scores against all keys stay in a core's cache


class Model:
    """Weights and scratch space. Not thread-safe: one forward pass at a time."""

    warm_up_tokens = 32  # after so many no request pays for paging weights in

    def __init__(self, loaded, threads=2):
        self.config = loaded.config
        self._weights = loaded.weights
        self._head = loaded.weights.get("head", loaded.weights["embedding"])
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        half = np.arange(self.config.head_dim // 2) * 2.0 / self.config.head_dim
        self._frequency = self.config.rope_base ** -half / np.asarray(self.config.rope_factors)

    def cache(self, blocks, dtype="bf16"):
        """A paged cache that this model's sequences may live in."""
        return PagedCache.for_model(self.config, blocks, dtype)

    def prefill(self, tokens, sequence, capture=None, progress=None):
        """Runs `tokens` at the positions that follow `sequence.length`, in chunks, and leaves their
        KV in it. Returns the last layer's normalised output, [tokens, hidden]."""
        out = np.empty((len(tokens), self.config.hidden), np.float32)
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start:start + CHUNK_TOKENS]
            out[start:start + len(chunk)] = self._forward(chunk, sequence, capture)
            if progress:
                progress(len(chunk))
        return out

    def logits(self, hidden):
        """[rows, hidden] -> [rows, vocab], each thread taking a part of the vocabulary."""
        out = np.empty((len(hidden), self._head.shape[0]), np.float32)
        step = -(-self._head.shape[0] // self._threads)

        def part(start):
            np.matmul(hidden, self._head[start:start + step].T, out=out[:, start:start + step])

        self.run(part, range(0, self._head.shape[0], step))
        return out

    def logits_on_this_thread(self, hidden):
        """As `logits`, for callers that spread rows over `run` themselves."""
        return hidden @ self._head.T

    def generate(self, hidden_last, sequence, count, stop=()):
        """Greedy text: up to `count` tokens after the position whose output is `hidden_last`."""
        tokens = []
        while len(tokens) < count:
            token = int(self.logits(hidden_last.reshape(1, -1))[0].argmax())
            if token in stop:
                break
            tokens.append(token)
            if len(tokens) < count:
                hidden_last = self._forward([token], sequence, None)[-1]
        return tokens

    def run(self, function, items):
        """Calls `function` on each item, on the model's threads."""
        items = list(items)
        if len(items) == 1:
            function(items[0])
        else:
            for _ in self._pool.map(function, items):
                pass

    def _forward(self, tokens, sequence, capture):
        config, weights = self.config, self._weights
        start, count = sequence.length, len(tokens)
        end = start + count
        if end > config.context:
            raise ValueError(f"{end} positions; the model's context is {config.context}")
        sequence.reserve(end)
        x = np.asarray(weights["embedding"][np.asarray(tokens)], np.float32)
        angles = np.arange(start, end)[:, None] * self._frequency
        cos, sin = (f(angles).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
        rows = min(TILE_ROWS, max(16, -(-count // self._threads)))
        tiles = [slice(at, min(at + rows, count)) for at in range(0, count, rows)]
        q = np.empty((count, config.heads, config.head_dim), np.float32)
        # The column of ones makes attention's product also sum the weights.
        k = np.empty((config.kv_heads, end, config.head_dim), np.float32)
        v = np.ones((config.kv_heads, end, config.head_dim + 1), np.float32)

        for layer in range(config.layers):
            def project(tile):
                self._project(layer, x[tile], cos[tile], sin[tile], q[tile], sequence,
                              start + tile.start, capture)

            def gather(side):
                if side == "k":
                    sequence.read(sequence.cache.k, layer, end, k)
                else:
                    sequence.read(sequence.cache.v, layer, end, v[:, :, :-1])

            def finish(tile):
                seen = start + tile.stop
                attended = self._attend(q[tile], k[:, :seen], v[:, :seen])
                x[tile] += attended @ weights[f"{layer}.attn_out"].T
                self._feed_forward(layer, x[tile])

            self.run(project, tiles)
            self.run(gather, ("k", "v"))
            self.run(finish, tiles)
        sequence.length = end
        return _normalise(x, weights["final_norm"], config.norm_epsilon)

    def _project(self, layer, x, cos, sin, q_out, sequence, position, capture):
        """Queries into `q_out`; keys and values into the cache."""
        config, weights = self.config, self._weights
        normed = _normalise(x, weights[f"{layer}.attn_norm"], config.norm_epsilon)
        qkv = (normed @ weights[f"{layer}.qkv"].T).reshape(len(x), -1, config.head_dim)
        both = _rotate(qkv[:, :config.heads + config.kv_heads], cos, sin)
        q_out[...] = both[:, :config.heads]
        k, v = both[:, config.heads:], qkv[:, config.heads + config.kv_heads:]
        sequence.write(layer, position, k, v)
        if capture:
            capture(layer, position, q_out, k, v)

    def _attend(self, q, k, v):
        """Causal attention of q [rows, heads, dim], the last rows of the keys' positions, over
        k [kv_heads, tokens, dim] and v [kv_heads, tokens, dim + 1]. Returns [rows, heads * dim]."""
        config = self.config
        rows, share = len(q), config.heads // config.kv_heads
        first = k.shape[1] - rows
        out = np.empty((rows, config.heads, config.head_dim), np.float32)
        # [kv_heads, rows, share, dim]
        queries = (q * np.float32(config.head_dim ** -0.5)).reshape(
            rows, config.kv_heads, share, config.head_dim).transpose(1, 0, 2, 3)
        for at in range(0, rows, _ATTENTION_ROWS):
            stop = min(at + _ATTENTION_ROWS, rows)
            seen = first + stop
            hidden = np.triu(np.full((stop - at, stop - at), -np.inf, np.float32), 1)[:, None, :]
            for head in range(config.kv_heads):
                block = np.ascontiguousarray(queries[head, at:stop]).reshape(-1, config.head_dim)
                scores = block @ k[head, :seen].T
                scores.reshape(stop - at, share, seen)[:, :, first + at:] += hidden
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                summed = scores @ v[head, :seen]
                result = summed[:, :-1] / summed[:, -1:]
                out[at:stop, head * share:(head + 1) * share] = result.reshape(
                    stop - at, share, config.head_dim)
        return out.reshape(rows, -1)

    def _feed_forward(self, layer, x):
        """Adds the layer's SwiGLU block to x [rows, hidden] in place."""
        config, weights = self.config, self._weights
        normed = _normalise(x, weights[f"{layer}.ffn_norm"], config.norm_epsilon)
        gate_up = normed @ weights[f"{layer}.gate_up"].T
        gate, up = gate_up[:, :config.ffn], gate_up[:, config.ffn:]
        sigmoid = np.negative(gate)
        with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right sigmoid, 0
            np.exp(sigmoid, out=sigmoid)
        sigmoid += 1.0
        gate /= sigmoid
        gate *= up
        x += gate @ weights[f"{layer}.down"].T


def _normalise(x, weight, epsilon):
    """Root-mean-square normalisation (arXiv 1910.07467)."""
    scale = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1]) + np.float32(epsilon)
    out = x * (np.float32(1.0) / np.sqrt(scale))[:, None]
    out *= weight
    return out


def _rotate(x, cos, sin):
    """Rotary position embedding (arXiv 2104.09864) of x [rows, heads, dim], pairing i with
    i + dim/2."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.multiply(low, cos, out=out[..., :half])
    out[..., :half] -= high * sin
    np.multiply(high, cos, out=out[..., half:])
    out[..., half:] += low * sin
    return out
