"""How a server ends: by SIGTERM or Admin.Drain, with calls in flight, and how it starts when it cannot."""

import queue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .pages import Shape, key_of, wide_page
from .process import Oscarkvd
from .store import Session, Space, error_of

SHAPE = Shape()


@pytest.fixture
def running(build_dir):
    with Oscarkvd(build_dir) as running:
        yield running


@pytest.fixture
def space(v1, running):
    with grpc.insecure_channel(running.endpoint) as channel:
        yield Space(v1, channel, "drained")


def put_in_flight(space, eventually):
    page = wide_page(SHAPE, 0)
    sent = queue.SimpleQueue()
    chunks = list(space.chunks(0, page.data))
    for message in (space.header([space.item(key_of("k"), page)]), chunks[0]):
        sent.put(message)
    call = space.cache.Put.future(iter(sent.get, None))
    eventually(lambda: space.stats().inflight_bytes, len(page.data))
    return call, sent, chunks[1:]


def drained(space):
    """Whether new calls are refused because the server drains."""
    try:
        space.stats()
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE and "draining" in error.details()
        return True
    return False


@pytest.mark.parametrize("ask", ["SIGTERM", "Drain"])
def test_call_in_flight_ends_well_before_the_server_does(space, running, eventually, ask):
    call, sent, rest = put_in_flight(space, eventually)
    with Session(space):
        if ask == "SIGTERM":
            running.terminate()
        else:
            assert space.admin.Drain(space.v1.DrainRequest(grace_ms=600_000)).calls_in_flight == 3
        eventually(lambda: drained(space), True)
        for message in (*rest, None):
            sent.put(message)
        assert call.result().results[0].status == space.v1.OK
    assert running.wait() == 0


def test_session_is_told(space, running):
    with Session(space) as session:
        running.terminate()
        code, message = error_of(lambda: session.stream)
        assert code == "UNAVAILABLE" and "draining" in message
    assert running.wait() == 0


@pytest.mark.parametrize("flags", [{"config": "drain_grace_ms: 1"}, {}])
def test_grace_ends_calls_that_do_not(v1, build_dir, eventually, flags):
    with Oscarkvd(build_dir, **flags) as running, grpc.insecure_channel(running.endpoint) as channel:
        space = Space(v1, channel, "drained")
        call, sent, _ = put_in_flight(space, eventually)
        if flags:
            running.terminate()
        else:
            space.admin.Drain(v1.DrainRequest(grace_ms=1))  # well below the 10 seconds of the configuration
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        sent.put(None)
        assert running.wait() == 0


def test_slow_verify_does_not_hold_up_the_end(v1, build_dir):
    with Oscarkvd(build_dir, "drain_grace_ms: 600000") as running, grpc.insecure_channel(running.endpoint) as channel:
        space = Space(v1, channel, "verified")
        for number in range(2):
            page = wide_page(SHAPE, number)
            space.put([space.item(key_of(number), page)], [page.data])
        call = space.admin.Verify(v1.VerifyRequest(bytes_per_second=1))
        assert next(call).pages_checked == 1
        running.terminate()
        assert running.wait() == 0
        assert error_of(lambda: call)[0] == "UNAVAILABLE"


def test_health_turns_before_the_end_and_whoever_watches_it_does_not_hold_it_up(v1, build_dir, eventually):
    with Oscarkvd(build_dir, "drain_grace_ms: 600000") as running, grpc.insecure_channel(running.endpoint) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        _, sent, _ = put_in_flight(Space(v1, channel, "drained"), eventually)
        running.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        sent.put(None)
        assert running.wait() == 0


def test_server_that_died_is_unavailable_and_has_another_epoch_when_back(v1, build_dir, running, space):
    page = wide_page(SHAPE, 0)
    space.put([space.item(key_of("k"), page)], [page.data])
    assert space.lookup([key_of("k")]).prefix_pages == 1
    running.process.kill()  # between the lookup and the get
    assert error_of(lambda: space.get([key_of("k")]))[0] == "UNAVAILABLE"
    running.wait()
    with Oscarkvd(build_dir, flags=["--listen", running.endpoint]) as again:
        with grpc.insecure_channel(again.endpoint) as channel:
            other = Space(v1, channel, "drained")
            assert other.opened.fingerprint == space.opened.fingerprint
            other.scope.server_epoch = space.opened.server_epoch
            assert error_of(lambda: other.lookup([key_of("k")]))[0] == "ABORTED"


def test_serves_on_several_addresses(v1, build_dir):
    with Oscarkvd(build_dir, flags=["--listen", "127.0.0.1:0"]) as running:
        assert len(running.listening) == 2 and not running.listening[1].endswith(":0")
        for endpoint in running.listening:
            with grpc.insecure_channel(endpoint) as channel:
                assert Space(v1, channel, "both").stats().version


def test_address_in_use_is_said(build_dir):
    with Oscarkvd(build_dir, metrics_listen="127.0.0.1:0", flags=["--listen", "127.0.0.1:0"]) as running:
        with pytest.raises(RuntimeError, match="(?s)ended with 1: .*cannot listen on " + running.listening[1]):
            Oscarkvd(build_dir, flags=["--listen", running.listening[1]])
        metrics = "(?s)ended with 1: .*metrics cannot listen on " + running.metrics_address
        with pytest.raises(RuntimeError, match=metrics):
            Oscarkvd(build_dir, metrics_listen=running.metrics_address)
