"""oscarkv.gpu with a real oscarkvd: what the GPU pushes and fetches is what the CPU's client does, for torch and cupy."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import oscarkv
import pytest
from support.server_process import DEADLINE_S
from support.slow_proxy import SlowProxy

torch = pytest.importorskip("torch")
pytest.importorskip("oscarkv._gpu", reason="built without CUDA")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import oscarkv.gpu  # noqa: E402  (only where it can be imported)

HERE = pathlib.Path(__file__).parent
LAYERS, HEADS, DIM, PAGE_TOKENS, BLOCK = 5, 2, 128, 64, 16
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="bf16")
TRANSFORMS = oscarkv.TransformSet.hadamard(GEOMETRY, 0.9, 0.9)
SPEC = oscarkv.NamespaceSpec("gpu", GEOMETRY, oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash, sink_tokens=64,
                                                               recent_tokens=64))
PAGES, SLOTS_OF_CACHE = 8, 1024
KEYS = oscarkv.chain_keys(np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32), PAGE_TOKENS)
SLOTS = (np.random.default_rng(3).permutation(SLOTS_OF_CACHE // PAGE_TOKENS)[:PAGES, None] * PAGE_TOKENS
         + np.arange(PAGE_TOKENS)).ravel()
FORMS = ["wide"] + ["packed"] * (PAGES - 2) + ["wide"]


def bf16(values):
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def fp32(bits):
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def random_rows(seed):
    """[K and V, layers, slots, heads, dim], bf16 as uint16."""
    return bf16(np.random.default_rng(seed).normal(size=(2, LAYERS, SLOTS_OF_CACHE, HEADS, DIM)))


def cupy():
    return pytest.importorskip("cupy")


class Torch:
    name = "torch"

    @staticmethod
    def upload(bits):
        return torch.from_numpy(bits.view(np.int16)).cuda().view(torch.bfloat16)

    @staticmethod
    def download(tensor):
        return tensor.contiguous().view(torch.int16).cpu().numpy().view(np.uint16)

    @staticmethod
    def stream():
        return torch.cuda.Stream()


class Cupy:
    name = "cupy"

    @staticmethod
    def upload(bits):
        return cupy().asarray(bits)

    @staticmethod
    def download(array):
        return cupy().asnumpy(cupy().ascontiguousarray(array))

    @staticmethod
    def stream():
        return cupy().cuda.Stream(non_blocking=True)


class CudaArray:
    """What speaks __cuda_array_interface__ only."""

    name = "cuda_array_interface"

    class _Array:
        def __init__(self, bits):
            self.array = cupy().asarray(bits)
            self.__cuda_array_interface__ = self.array.__cuda_array_interface__

    upload = _Array
    stream = Cupy.stream

    @staticmethod
    def download(array):
        return Cupy.download(array.array)


def token_major(library, rows):
    return [library.upload(side) for side in rows], lambda side: library.download(side)


def blocks(library, rows):
    shape = (LAYERS, SLOTS_OF_CACHE // BLOCK, BLOCK, HEADS, DIM)
    return ([library.upload(side.reshape(shape)) for side in rows],
            lambda side: library.download(side).reshape(rows.shape[1:]))


def heads_first(library, rows):
    """Blocks in which a head's tokens lie together, as a view whose dimensions are in the usual order."""
    shape = (LAYERS, SLOTS_OF_CACHE // BLOCK, BLOCK, HEADS, DIM)
    swapped = [np.ascontiguousarray(side.reshape(shape).swapaxes(2, 3)) for side in rows]
    return ([library.upload(side).swapaxes(2, 3) for side in swapped],
            lambda side: library.download(side).reshape(rows.shape[1:]))


def layer_by_layer(library, rows):
    return ([[library.upload(layer) for layer in side] for side in rows],
            lambda side: np.stack([library.download(layer) for layer in side]))


class GpuCache:
    def __init__(self, rows, library=Torch, layout=token_major):
        (self.k, self.v), self._download = layout(library, rows)
        torch.cuda.synchronize()
        self.kv = oscarkv.gpu.PagedKv(self.k, self.v)

    def rows(self):
        torch.cuda.synchronize()
        return np.stack([self._download(self.k), self._download(self.v)])


def close(found, expected, forms=FORMS):
    """WIDE pages bit for bit, PACKED ones within what FORMAT.md grants two decoders; nothing else was written."""
    for page, form in enumerate(forms):
        slots = SLOTS[page * PAGE_TOKENS:(page + 1) * PAGE_TOKENS]
        one, other = found[:, :, slots], expected[:, :, slots]
        if form == "wide":
            np.testing.assert_array_equal(one, other)
        else:
            bound = 2 * 2**-5 * np.abs(fp32(other)).max(-1, keepdims=True)
            assert (np.abs(fp32(one) - fp32(other)) <= bound).all(), f"page {page}"
    rest = np.setdiff1d(np.arange(SLOTS_OF_CACHE), SLOTS[:len(forms) * PAGE_TOKENS])
    np.testing.assert_array_equal(found[:, :, rest], expected[:, :, rest])


@pytest.fixture
def space(server):
    with oscarkv.Client(server.endpoint, timeout_ms=20000) as client:
        yield client.open(SPEC, transforms=TRANSFORMS)


@pytest.fixture
def worker(space):
    return oscarkv.gpu.Worker(space, TRANSFORMS, pages_max=64, stage_bytes=1 << 20)


def cpu_fetch(space, pages=PAGES):
    rows = random_rows(99)
    report = space.fetch(oscarkv.PagedKv(*rows), SLOTS[:pages * PAGE_TOKENS], KEYS[:pages])
    assert report.pages == pages
    return rows


def cpu_push(space, seed=1):
    rows = random_rows(seed)
    report = space.push(oscarkv.PagedKv(*rows), SLOTS, KEYS)
    assert report.statuses == ["OK"] * PAGES
    return rows


LAYOUTS = [(Torch, token_major), (Torch, blocks), (Torch, heads_first), (Torch, layer_by_layer), (Cupy, token_major),
           (Cupy, blocks), (Cupy, heads_first), (CudaArray, token_major)]


@pytest.mark.parametrize("library, layout", LAYOUTS, ids=lambda of: getattr(of, "name", None) or of.__name__)
def test_round_trip_is_the_cpus(space, worker, library, layout):
    source = random_rows(1)
    pushed = worker.push(GpuCache(source, library, layout).kv, SLOTS, KEYS, stream=library.stream())
    assert (pushed.error, pushed.statuses) == ("", ["OK"] * PAGES)
    assert (pushed.wide_pages, pushed.packed_pages, pushed.nonfinite_rows) == (2, PAGES - 2, 0)
    hit = space.lookup(KEYS, lease=True)
    assert hit.pages == PAGES and hit.encodings == FORMS
    cache = GpuCache(random_rows(99), library, layout)
    report = worker.fetch(cache.kv, SLOTS, KEYS, hit, stream=library.stream())
    hit.release()
    assert (report.error, report.pages, report.tokens) == ("", PAGES, PAGES * PAGE_TOKENS)
    assert report.statuses == ["OK"] * PAGES and report.bytes_wire == pushed.bytes_wire
    found = cache.rows()
    close(found, cpu_fetch(space))
    # And it is what was pushed, as far as two bits go.
    packed = SLOTS[PAGE_TOKENS:2 * PAGE_TOKENS]
    one, other = fp32(found[:, :, packed]), fp32(source[:, :, packed])
    assert np.linalg.norm(one - other) < 0.6 * np.linalg.norm(other)


def test_pages_that_the_cpu_pushed(space, worker):
    rows = cpu_push(space)
    cache = GpuCache(random_rows(99))
    assert worker.fetch(cache.kv, SLOTS, KEYS).pages == PAGES
    close(cache.rows(), cpu_fetch(space))
    assert (worker.push(GpuCache(rows).kv, SLOTS[:PAGE_TOKENS], KEYS[:1]).statuses) == ["EXISTS"]  # the same bytes


def test_part_of_the_pages(space, worker):
    cpu_push(space)
    expected = random_rows(99)
    space.fetch(oscarkv.PagedKv(*expected), SLOTS, KEYS, layers=(1, 4), heads=(1, 2))
    cache = GpuCache(random_rows(99))
    report = worker.fetch(cache.kv, SLOTS, KEYS, layers=(1, 4), heads=(1, 2))
    assert report.pages == PAGES
    close(cache.rows(), expected)


def test_layers_are_there_when_the_stream_has_waited(space, worker):
    cpu_push(space)
    cache = GpuCache(random_rows(99))
    stream = torch.cuda.Stream()
    fetch = worker.start_fetch(cache.kv, SLOTS, KEYS, stream=stream)
    layers = []
    for layer in range(LAYERS):
        fetch.wait_layer(layer, stream)
        with torch.cuda.stream(stream):
            layers.append((cache.k[layer].clone(), cache.v[layer].clone()))
    stream.synchronize()
    seen = np.stack([np.stack([Torch.download(side) for side in layer]) for layer in layers], axis=1)
    assert fetch.result().pages == PAGES
    np.testing.assert_array_equal(seen, cache.rows())
    close(seen, cpu_fetch(space))


def test_transfers_come_after_what_the_stream_holds(space, worker):
    rows = random_rows(1)
    cache = GpuCache(random_rows(2))
    later = GpuCache(rows)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        cache.k.copy_(later.k)
        cache.v.copy_(later.v)
    assert worker.push(cache.kv, SLOTS, KEYS, stream=stream).statuses == ["OK"] * PAGES
    np.testing.assert_array_equal(cpu_fetch(space)[:, :, SLOTS[:PAGE_TOKENS]], rows[:, :, SLOTS[:PAGE_TOKENS]])


@pytest.mark.parametrize("server", ["127.0.0.1:0"], indirect=True)  # a Unix socket's server has pages come by shared memory
def test_corrupt_page_is_found_on_the_gpu(server):
    proxy = SlowProxy(server.endpoint)
    try:
        with oscarkv.Client(proxy.endpoint, timeout_ms=20000) as client:
            space = client.open(SPEC, transforms=TRANSFORMS)
            worker = oscarkv.gpu.Worker(space, TRANSFORMS, pages_max=64, stage_bytes=1 << 20)
            cpu_push(space)
            cache = GpuCache(random_rows(99))
            # Page 0 has 327,680 bytes, page 1 46,080: so few come at once, all layers of the one before the other.
            proxy.flip_bit_after(345_000)
            report = worker.fetch(cache.kv, SLOTS, KEYS)
            assert report.statuses == ["OK", "CORRUPT"] + ["SKIPPED"] * (PAGES - 2)
            assert (report.pages, report.error) == (1, "") and client.counters["corrupt_pages"] == 1
            first = SLOTS[:PAGE_TOKENS]
            np.testing.assert_array_equal(cache.rows()[:, :, first], cpu_fetch(space, 1)[:, :, first])
            assert worker.fetch(cache.kv, SLOTS, KEYS).pages == PAGES  # and is none the worse for it
            close(cache.rows(), cpu_fetch(space))
    finally:
        proxy.close()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_dead_server_is_a_miss(server, end):
    with oscarkv.Client(server.endpoint, timeout_ms=500) as client:
        space = client.open(SPEC, transforms=TRANSFORMS)
        worker = oscarkv.gpu.Worker(space, TRANSFORMS, pages_max=64, stage_bytes=1 << 20)
        cpu_push(space)
        getattr(server, end)()
        rows = random_rows(99)
        cache = GpuCache(rows)
        fetch = worker.start_fetch(cache.kv, SLOTS, KEYS)
        for layer in range(LAYERS):
            fetch.wait_layer(layer)  # nothing comes, and nobody hangs
        report = fetch.result()
        assert report.pages == 0 and report.statuses == ["MISS"] + ["SKIPPED"] * (PAGES - 1) and report.error
        np.testing.assert_array_equal(cache.rows(), rows)
        pushed = worker.push(cache.kv, SLOTS, KEYS)  # more than a socket takes unread
        assert pushed.statuses == ["SKIPPED"] * PAGES and pushed.error
        if end == "stop":
            server.resume()


def test_misuse_is_named(space, worker):
    cache = GpuCache(random_rows(1))
    with pytest.raises(ValueError, match="k: expected a tensor in GPU memory.*host memory"):
        oscarkv.gpu.PagedKv(cache.k.cpu(), cache.v)
    with pytest.raises(ValueError, match="v: expected bfloat16, float16 or uint16"):
        oscarkv.gpu.PagedKv(cache.k, cache.v.float())
    with pytest.raises(ValueError, match="k: expected rows that are contiguous, found a stride of 4 bytes"):
        oscarkv.gpu.PagedKv(cache.k[..., ::2], cache.v)
    with pytest.raises(ValueError, match="k: expected DLPack or __cuda_array_interface__, found .*str"):
        oscarkv.gpu.PagedKv("k", cache.v)
    with pytest.raises(ValueError, match="same layers and slots"):
        oscarkv.gpu.PagedKv(cache.k[1:], cache.v)
    with pytest.raises(ValueError, match="k must have 2 heads of dim 128, found 1 of 128"):
        worker.fetch(oscarkv.gpu.PagedKv(cache.k[:, :, :1], cache.v[:, :, :1]), SLOTS, KEYS)
    shifted = torch.empty(cache.k.numel() + 8, dtype=torch.bfloat16, device="cuda")[1:1 + cache.k.numel()]
    with pytest.raises(ValueError, match="cache, K, layer 0: expected a pointer that is a multiple of 16"):
        worker.fetch(oscarkv.gpu.PagedKv(shifted.view(cache.k.shape), cache.v), SLOTS, KEYS)
    slots = SLOTS.copy()
    slots[7] = SLOTS_OF_CACHE
    with pytest.raises(ValueError, match="slot of token 7 must be -1..1023, found 1024"):
        worker.fetch(cache.kv, slots, KEYS)
    with pytest.raises(ValueError, match="slot of token 7 must be 0..1023, found 1024"):
        worker.push(cache.kv, slots, KEYS)
    with pytest.raises(ValueError, match="stream: expected an integer"):
        worker.fetch(cache.kv, SLOTS, KEYS, stream="main")
    with pytest.raises(ValueError, match="8 keys need slots of as many pages, found 7"):
        worker.fetch(cache.kv, SLOTS[PAGE_TOKENS:], KEYS)
    with pytest.raises(ValueError, match="65 pages, options.pages_max is 64"):
        worker.fetch(cache.kv, np.zeros(65 * PAGE_TOKENS, np.int64), KEYS)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED.*allocating"):
        oscarkv.gpu.Worker(space, TRANSFORMS, stage_bytes=1 << 42)
    assert worker.fetch(cache.kv, SLOTS, KEYS).statuses[0] == "MISS"  # all of that left it as it was


def test_readme_example_runs_as_it_stands(server, tmp_path):
    readme = (HERE.parents[1] / "client" / "README.md").read_text().split("## From a GPU")[1]
    script = tmp_path / "share.py"
    script.write_text(re.search(r"```python\n(.*?)```", readme, re.S)[1])

    def run(*command):
        return subprocess.run([*command, server.endpoint], check=True, timeout=DEADLINE_S, capture_output=True,
                              text=True).stdout

    assert run(sys.executable, script, "fetch") == "reuse 0 tokens, prefill 647\n"
    assert run(sys.executable, script, "push") == "pushed 3 wide and 7 packed pages; no error\n"
    assert run(sys.executable, script, "fetch") == "reuse 640 tokens, prefill 7\n"


def test_readme_example_in_cpp_runs_as_it_stands(server, build_dir):
    program = build_dir / "bin" / "client_gpu_readme_example"
    if not program.exists():
        pytest.skip("the example is not built")

    def run(what):
        return subprocess.run([program, what, server.endpoint], check=True, timeout=DEADLINE_S, capture_output=True,
                              text=True).stdout

    assert run("fetch") == "reuse 0 tokens\n"
    assert run("push") == f"pushed {2 * 640 * 4 * 2 * 64 * 2} bytes: OK\n"
    assert run("fetch") == "reuse 640 tokens\n"


LOSE_THE_DEVICE = """
import os, sys
sys.path[:0] = sys.argv[2:]
from test_gpu_client import *
with oscarkv.Client(sys.argv[1], timeout_ms=20000) as client:
    space = client.open(SPEC, transforms=TRANSFORMS)
    worker = oscarkv.gpu.Worker(space, TRANSFORMS, pages_max=64, stage_bytes=1 << 20)
    cache = GpuCache(random_rows(99))
    stream = torch.cuda.Stream()
    fetch = worker.start_fetch(cache.kv, SLOTS, KEYS, stream=stream)
    fetch.wait_layer(0, stream)
    with torch.cuda.stream(stream):
        torch._assert_async(torch.zeros((), dtype=torch.bool, device="cuda"))  # the context does not outlive this
    ends = []
    for attempt in (fetch.result, lambda: worker.fetch(cache.kv, SLOTS, KEYS), lambda: worker.push(cache.kv, SLOTS, KEYS)):
        try:
            attempt()
            ends.append("no error")
        except RuntimeError as error:
            ends.append(str(error).split(":")[0])
    print(ends[1:], flush=True)
    os._exit(0)  # what is left of the context cannot be tidied up
"""


def test_lost_device_is_an_error_and_the_server_goes_on(server, space):
    cpu_push(space)
    done = subprocess.run([sys.executable, "-c", LOSE_THE_DEVICE, server.endpoint, HERE, HERE.parent],
                          capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "['UNAVAILABLE', 'UNAVAILABLE']\n", done.stderr[-2000:]
    cpu_fetch(space)
