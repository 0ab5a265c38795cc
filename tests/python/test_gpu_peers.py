"""oscarkv.gpu with an oscarkvd whose GPU tier is on the same GPU: pages go between the two by every path there is, and are the
same. NCCL takes two processes on one GPU for two hosts when each names itself."""

import os
import select
import time

import numpy as np
import oscarkv
import pytest
from support.server_process import DEADLINE_S, ServerProcess

torch = pytest.importorskip("torch")
pytest.importorskip("oscarkv._gpu", reason="built without CUDA")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import oscarkv.gpu  # noqa: E402  (only where it can be imported)

LAYERS, HEADS, DIM, PAGE_TOKENS, PAGES = 4, 2, 128, 64, 8
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=PAGE_TOKENS, dtype="bf16")
TRANSFORMS = oscarkv.TransformSet.hadamard(GEOMETRY, 0.9, 0.9)
TOKENS = PAGES * PAGE_TOKENS
SLOTS = np.arange(TOKENS)
KEYS = oscarkv.chain_keys(np.arange(TOKENS, dtype=np.uint32), PAGE_TOKENS)
SPEC = oscarkv.NamespaceSpec("peers", GEOMETRY, oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash))
NCCL = os.environ.get("OSCARKV_NCCL_LIBRARY", "libnccl.so.2")


def cache(seed):
    rows = torch.randn((2, LAYERS, TOKENS, HEADS, DIM), generator=torch.Generator().manual_seed(seed))
    return rows.cuda().bfloat16()


@pytest.fixture(params=["ipc", "nccl"])
def gpu_server(request, build_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_HOSTID", "server")
    config = tmp_path / "server.yaml"
    config.write_text(f"gpu: {{capacity: 128MiB, required: true, nccl: {NCCL}}}\n"
                      f"paths: {{fetch: [{request.param}, grpc], push: [{request.param}, grpc]}}\n")
    server = ServerProcess(build_dir, listen="unix", capacity="256MiB", arguments=["--config", config])
    monkeypatch.setenv("NCCL_HOSTID", "worker")
    yield server, request.param
    server.close()


def test_pages_between_gpus(gpu_server):
    server, path = gpu_server
    with oscarkv.Client(server.endpoint, timeout_ms=20000) as client:
        space = client.open(SPEC, transforms=TRANSFORMS)
        worker = oscarkv.gpu.Worker(space, TRANSFORMS, pages_max=64, stage_bytes=4 << 20,
                                    nccl=NCCL if path == "nccl" else None)
        rows = cache(1)
        pushed = worker.push(oscarkv.gpu.PagedKv(*rows), SLOTS, KEYS)
        assert (pushed.error, pushed.statuses, pushed.path) == ("", ["OK"] * PAGES, path)
        # CUDA IPC brings what the GPU tier has a copy of: soon after a push.
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = torch.zeros_like(rows)
            report = worker.fetch(oscarkv.gpu.PagedKv(*found), SLOTS, KEYS)
            assert (report.error, report.pages) == ("", PAGES)
            if report.path == path:
                break
            assert time.monotonic() < deadline, report.path
        # What the CPU's client fetches, as near as two decoders are.
        host = np.zeros((2, LAYERS, TOKENS, HEADS, DIM), np.uint16)
        report = space.fetch(oscarkv.PagedKv(*host), SLOTS, KEYS)
        assert (report.pages, report.path) == (PAGES, "grpc")
        expected = torch.from_numpy(host.view(np.int16)).cuda().view(torch.bfloat16).float()
        assert ((found.float() - expected).abs() <= 2**-4 * expected.abs().amax(-1, keepdim=True)).all()
        assert expected.count_nonzero() > expected.numel() // 2
        # Layer by layer, and told by a descriptor; one that is cancelled costs the next nothing.
        again = torch.zeros_like(rows)
        fetch = worker.start_fetch(oscarkv.gpu.PagedKv(*again), SLOTS, KEYS, layers_at_once=1)
        assert select.select([fetch], [], [], DEADLINE_S)[0]
        for layer in range(LAYERS):
            fetch.wait_layer(layer)
        report = fetch.result()
        assert (report.pages, report.path, fetch.done) == (PAGES, path, True)
        assert torch.equal(again, found)
        fetch = worker.start_fetch(oscarkv.gpu.PagedKv(*again), SLOTS, KEYS, layers_at_once=1)
        fetch.cancel()
        fetch.result()
        assert worker.fetch(oscarkv.gpu.PagedKv(*again), SLOTS, KEYS).pages == PAGES
        assert torch.equal(again, found)
