"""Microseconds of a decode step whose attention reads 2-bit pages, beside one that reads BF16.

Both run the same model, in BF16, in a CUDA graph. The BF16 step has the better of it: its K and V lie
contiguous, and of PyTorch's attention kernels the fastest counts.
"""

import dataclasses
import functools

import oscarkv

from . import metrics
from .attention_kv import ContiguousKv, PackedAttention, PackedKv, sequence_pages
from .paged_cache import BLOCK_TOKENS, Sequence
from .torch_model import TorchModel, time_us, torch

_BATCHES = (1, 8, 32)
# Attention's part of a step of Qwen3-8B: (requests, tokens of each).
_QWEN3 = {"layers": 36, "kv_heads": 8, "k_head_dim": 128}
_QWEN3_HEADS = 32
_QWEN3_SHAPES = ((1, 32768), (1, 131072), (8, 32768))
STEPS = len(_BATCHES) + len(_QWEN3_SHAPES)


def model_step(model, tokens, turns, attend):
    """Logits after one token of each request; `attend(layer, q, k, v)` is the attention."""
    x = model.embed(tokens)
    for layer in range(model.config.layers):
        q, k, v = model.project(layer, x, turns)
        x = model.finish(layer, x, attend(layer, q, k, v))
    return model.head(model.normalise(x, "final_norm"))


def model_steps(loaded, exact_model, tokens, setting, transforms, progress):
    """A figure for each batch: a whole step that takes the last of `tokens` and attends over them all,
    the same in every request. `exact_model` computes what is known of them before."""
    config, device, known = loaded.config, exact_model.device, len(tokens) - 1
    sequence = Sequence(exact_model.cache(-(-known // BLOCK_TOKENS)))
    exact_model.prefill(tokens[:-1], sequence)
    slots = torch.tensor(sequence.slots(0, known), device=device)
    k, v = (side.flatten(1, 2)[:, slots] for side in (sequence.cache.k, sequence.cache.v))
    geometry = oscarkv.Geometry(config.layers, config.kv_heads, config.head_dim,
                                page_tokens=setting.page_tokens)
    spec = oscarkv.CodecSpec(transform_hash=transforms.hash)
    pages = sequence_pages(oscarkv.PageCodec(geometry, spec, transforms), geometry, setting,
                           *(side.view(torch.uint16).cpu().numpy() for side in (k, v)))
    model = TorchModel(loaded, device, "bfloat16")
    figures = []
    for requests in _BATCHES:
        inputs = torch.full((requests,), tokens[-1], device=device)
        turns = model.turns(torch.full((requests,), known, device=device))
        rows = ContiguousKv(with_room(k, requests), with_room(v, requests))
        backend = rows.choose(*model.project(0, model.embed(inputs), turns))
        packed = PackedKv(geometry, pages, requests, device)
        attentions = {"bf16": rows.attend, "nothing": lambda layer, q, k, v: q,
                      "int2": PackedAttention(packed, geometry, spec, transforms, config.heads).attend}
        steps = {name: functools.partial(model_step, model, inputs, turns, attend)
                 for name, attend in attentions.items()}
        with torch.inference_mode():
            exact, ours = (steps[name]()[:1].float().cpu().numpy() for name in ("bf16", "int2"))
            times = {name: time_us(step) for name, step in steps.items()}
        divergence = metrics.compare(ours, metrics.exact_distributions(exact, exact.argmax(axis=1)))
        figures.append({
            "requests": requests, "tokens": len(tokens), "us_bf16": times["bf16"],
            "us_int2": times["int2"], "us_without_attention": times["nothing"], "sdpa": backend,
            "kl": divergence.kl_first, "same_token": divergence.agreements == 1,
            "kv_bytes_bf16": rows.nbytes, "kv_bytes_int2": packed.nbytes})
        progress(1)
    return figures


def with_room(side, requests):
    """[layers, tokens, kv_heads, dim] -> [layers, requests, kv_heads, tokens + 1, dim], each request in
    memory of its own."""
    side = torch.nn.functional.pad(side.transpose(1, 2), (0, 0, 0, 1))
    return side[:, None].expand(-1, requests, -1, -1, -1).contiguous()


def qwen3_steps(setting, device, progress):
    """A figure for each shape: attention's part of a step of Qwen3-8B, over random rows."""
    geometry = oscarkv.Geometry(**_QWEN3, page_tokens=setting.page_tokens)
    transforms = oscarkv.TransformSet.hadamard(geometry)
    spec = oscarkv.CodecSpec(transform_hash=transforms.hash)
    codec = oscarkv.PageCodec(geometry, spec, transforms)
    layers, heads, dim, size = (geometry.layers, geometry.kv_heads, geometry.k_head_dim,
                                geometry.page_tokens)

    def random(*shape):
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    # Two packed pages and a WIDE one, again and again: what they hold costs no time.
    sample = random(2, layers, 2 * size, heads, dim).view(torch.uint16).cpu().numpy()
    *packed, wide = sequence_pages(
        codec, geometry, dataclasses.replace(setting, sink_tokens=0, recents=(0,)), *sample)
    figures = []
    for requests, tokens in _QWEN3_SHAPES:
        new = [random(requests, count, dim) for count in (_QWEN3_HEADS, heads, heads)]

        def step(attend):
            return lambda: [attend(layer, *new) for layer in range(layers)]

        rows = ContiguousKv(*(random(layers, requests, heads, tokens, dim) for _ in "kv"))
        figure = {"requests": requests, "tokens": tokens, "sdpa": rows.choose(*new),
                  "us_bf16": time_us(step(rows.attend)), "kv_bytes_bf16": rows.nbytes}
        del rows
        torch.cuda.empty_cache()
        last = tokens - size
        pages = [dataclasses.replace(packed[first // size % 2], position=first)
                 for first in range(0, last, size)]
        pages.append(dataclasses.replace(wide, position=last, tokens=size))
        kv = PackedKv(geometry, pages, requests, device)
        attention = PackedAttention(kv, geometry, spec, transforms, _QWEN3_HEADS)
        figures.append(figure | {"us_int2": time_us(step(attention.attend)), "kv_bytes_int2": kv.nbytes})
        del kv, attention
        torch.cuda.empty_cache()
        progress(1)
    return figures
