"""An oscarkvd built with CUDA that is asked for a GPU tier on a machine without a GPU: it serves, and says what is missing."""

import pathlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .process import Oscarkvd


@pytest.fixture
def without_gpu(build_dir):
    if "OSCARKV_CUDA:BOOL=ON" not in (build_dir / "CMakeCache.txt").read_text():
        pytest.skip("a build without CUDA refuses a GPU tier (test_oscarkvd_flags.py)")
    if pathlib.Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")


def test_it_serves_from_host_memory(build_dir, v1, without_gpu):
    with Oscarkvd(build_dir, flags=("--gpu-capacity", "64MiB")) as server:
        with grpc.insecure_channel(server.endpoint) as channel:
            stats = v1.Admin(channel).Stats(v1.StatsRequest())
            gpu, host = stats.tiers
            assert (gpu.tier, gpu.capacity_bytes, host.tier, host.degraded) == (v1.GPU, 0, v1.HOST, "")
            assert "CUDA" in gpu.degraded
            health = health_pb2_grpc.HealthStub(channel)
            told = {service: health.Check(health_pb2.HealthCheckRequest(service=service)).status
                    for service in ("", "oscarkv.v1.KvCache", "oscarkv.v1.GpuTier")}
            serving = health_pb2.HealthCheckResponse.SERVING
            assert told == {"": serving, "oscarkv.v1.KvCache": serving,
                            "oscarkv.v1.GpuTier": health_pb2.HealthCheckResponse.NOT_SERVING}
        server.terminate()
        assert server.wait() == 0
        log = pathlib.Path(server.log).read_text()
        assert log.count("the GPU tier is out of use: serving from host memory alone") == 1 and gpu.degraded in log


def test_it_does_not_start_where_the_gpu_is_required(build_dir, without_gpu):
    with pytest.raises(RuntimeError, match="the GPU tier: CUDA"):
        Oscarkvd(build_dir, flags=("--gpu-capacity", "64MiB", "--gpu-required"))
