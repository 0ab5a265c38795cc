"""The forward pass of model.py in PyTorch, over a paged KV cache in a GPU's memory.

PyTorch is not among the demo's packages (it takes gigabytes): only `--device cuda` needs it.
"""

import sys

import numpy as np

from .model import CHUNK_TOKENS
from .paged_cache import BLOCK_TOKENS, BlockPool
from .processes import Unavailable

try:
    import torch
    from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
except ImportError:
    torch = None


def require_torch(device):
    """Raises Unavailable when PyTorch, or the device that it is to use, is not there."""
    if torch is None:
        raise Unavailable(f"--device cuda needs PyTorch: {sys.executable} -m pip install torch")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"--device cuda: PyTorch {torch.__version__} finds no GPU here")


def time_us(call, repeats=61, warm_ups=5):
    """Median microseconds of what `call` enqueues, from replays of a CUDA graph of it."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(warm_ups + repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return float(np.median(times[warm_ups:]))


class TorchCache(BlockPool):
    """K and V as tensors [layers, blocks, block_tokens, kv_heads, head_dim]; a sequence of
    paged_cache.py lives in it as in a PagedCache, but for reading and writing, which are here."""

    def __init__(self, config, blocks, device, dtype):
        super().__init__(blocks)
        shape = (config.layers, blocks, BLOCK_TOKENS, config.kv_heads, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer, slots, k, v):
        """Stores k and v, [tokens, kv_heads, dim], at `slots`, a tensor."""
        for side, rows in ((self.k, k), (self.v, v)):
            side[layer].flatten(0, 1).index_copy_(0, slots, rows.to(side.dtype))

    def read(self, layer, slots):
        """K and V at `slots`, [tokens, kv_heads, dim]."""
        return tuple(side[layer].flatten(0, 1)[slots] for side in (self.k, self.v))


class TorchModel:
    """The same interface as model.Model: what goes in and comes out lies in numpy's memory. Not
    thread-safe."""

    warm_up_tokens = 2 * CHUNK_TOKENS  # kernels are chosen and loaded by shape

    def __init__(self, loaded, device="cuda", dtype="float32"):
        require_torch(device)
        self.config = loaded.config
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._weights = {name: torch.tensor(np.asarray(array), device=self.device, dtype=self.dtype)
                         for name, array in loaded.weights.items()}
        self._head = self._weights.get("head", self._weights["embedding"])
        half = np.arange(self.config.head_dim // 2) * 2.0 / self.config.head_dim
        frequency = self.config.rope_base ** -half / np.asarray(self.config.rope_factors)
        self._frequency = torch.tensor(frequency, device=self.device, dtype=torch.float64)

    def cache(self, blocks, dtype="bf16"):
        held = {"bf16": "bfloat16", "fp32": "float32"}[dtype]
        return TorchCache(self.config, blocks, self.device, getattr(torch, held))

    def prefill(self, tokens, sequence, capture=None, progress=None):
        out = np.empty((len(tokens), self.config.hidden), np.float32)
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start:start + CHUNK_TOKENS]
            out[start:start + len(chunk)] = self._forward(chunk, sequence, capture).float().cpu()
            if progress:
                progress(len(chunk))
        return out

    def logits(self, hidden):
        rows = torch.tensor(hidden, device=self.device, dtype=self.dtype)
        return self.head(rows).float().cpu().numpy()

    logits_on_this_thread = logits

    def generate(self, hidden_last, sequence, count, stop=()):
        tokens = []
        while len(tokens) < count:
            token = int(self.logits(hidden_last.reshape(1, -1))[0].argmax())
            if token in stop:
                break
            tokens.append(token)
            if len(tokens) < count:
                hidden_last = self._forward([token], sequence, None)[-1].float().cpu().numpy()
        return tokens

    def run(self, function, items):
        for item in items:
            function(item)

    # The parts of a layer, on tensors: decode_steps.py puts them together in another way.

    def embed(self, tokens):
        return self._weights["embedding"][tokens]

    def head(self, hidden):
        return hidden @ self._head.T

    def normalise(self, x, name):
        weight = self._weights[name]
        return rms_norm(x, weight.shape, weight, self.config.norm_epsilon)

    def turns(self, positions):
        """Rotary cosines and sines at `positions`, each [positions, 1, dim / 2]."""
        angles = positions.double()[:, None] * self._frequency
        return tuple(f(angles).to(self.dtype)[:, None, :] for f in (torch.cos, torch.sin))

    def project(self, layer, x, turns):
        """q [rows, heads, dim], k and v [rows, kv_heads, dim] of x [rows, hidden]."""
        config = self.config
        normed = self.normalise(x, f"{layer}.attn_norm")
        qkv = (normed @ self._weights[f"{layer}.qkv"].T).unflatten(-1, (-1, config.head_dim))
        turned = _rotate(qkv[:, :config.heads + config.kv_heads], *turns)
        return (turned[:, :config.heads], turned[:, config.heads:],
                qkv[:, config.heads + config.kv_heads:])

    def finish(self, layer, x, attended):
        """The layer's output from what it attended to, [rows, heads, dim]."""
        weights = self._weights
        x = x + attended.flatten(1).to(self.dtype) @ weights[f"{layer}.attn_out"].T
        gate, up = (self.normalise(x, f"{layer}.ffn_norm")
                    @ weights[f"{layer}.gate_up"].T).chunk(2, -1)
        return x + (silu(gate) * up) @ weights[f"{layer}.down"].T

    def _forward(self, tokens, sequence, capture):
        with torch.inference_mode():
            return self._layers(tokens, sequence, capture)

    def _layers(self, tokens, sequence, capture):
        start, end = sequence.length, sequence.length + len(tokens)
        if end > self.config.context:
            raise ValueError(f"{end} positions; the model's context is {self.config.context}")
        sequence.reserve(end)
        slots = torch.tensor(sequence.slots(0, end), device=self.device)
        positions = torch.arange(end, device=self.device)
        seen = positions <= positions[start:, None]  # [new, all]
        turns = self.turns(positions[start:])
        x = self.embed(torch.tensor(tokens, device=self.device))
        for layer in range(self.config.layers):
            q, k, v = self.project(layer, x, turns)
            sequence.cache.write(layer, slots[start:], k, v)
            if capture:
                capture(layer, start, *(rows.float().cpu().numpy() for rows in (q, k, v)))
            keys, values = (rows.to(self.dtype) for rows in sequence.cache.read(layer, slots))
            # [1, heads, tokens, dim]
            q, keys, values = (rows.transpose(0, 1)[None] for rows in (q, keys, values))
            attended = scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
            x = self.finish(layer, x, attended[0].transpose(0, 1))
        sequence.length = end
        return self.normalise(x, "final_norm")


def _rotate(x, cos, sin):
    """Rotary position embedding of x [rows, heads, dim], pairing i with i + dim/2."""
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
