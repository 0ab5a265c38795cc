"""Tenants' quotas as clients meet them, and a configuration that is read again while the server serves."""

import signal

import grpc
import pytest

from .pages import Shape, key_of, zero_page
from .process import Oscarkvd
from .store import Space

SHAPE = Shape(layers=24, heads=8, tokens=16)
TENANTS = """
tenants:
  - {{name: bounded, host_pages: {pages}}}
  - {{name: quiet, protected: 4MiB}}
  - {{name: "*", host: 12MiB}}
"""


@pytest.fixture
def run(v1, build_dir):
    """A server with these tenants, and what opens a tenant's namespace."""
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    with Oscarkvd(build_dir, config=TENANTS.format(pages=4), capacity="16MiB") as server:
        with grpc.insecure_channel(server.endpoint) as channel:
            yield server, lambda tenant: Space(v1, channel, "model", shape=SHAPE, tenant=tenant)


def put(space, number, page=zero_page(SHAPE)):
    [result] = space.put([space.item(key_of(number), page)], [page.data], chunk_bytes=1 << 20)
    return result


def held(space, numbers):
    return sum(status == space.v1.OK for status in space.each([key_of(number) for number in numbers]))


def test_tenant_keeps_within_its_quota_by_letting_its_own_pages_go(run):
    _, open_space = run
    bounded, other = open_space("bounded"), open_space("other")
    assert put(other, 0).status == other.v1.OK
    for number in range(20):
        assert put(bounded, number).status == bounded.v1.OK
    assert held(bounded, range(20)) == 4
    assert held(other, [0]) == 1


def test_flood_leaves_the_protected_share_of_another(run):
    _, open_space = run
    quiet, loud = open_space("quiet"), open_space("loud")
    page = zero_page(SHAPE)
    share = (4 << 20) // (len(page.data) + 4 * len(page.crcs))
    for number in range(share):
        assert put(quiet, number).status == quiet.v1.OK
    for number in range(60):
        assert put(loud, number).status == loud.v1.OK
    assert held(quiet, range(share)) == share


def test_quotas_are_read_again_on_sighup_and_lowered_ones_are_met(run, eventually):
    server, open_space = run
    space = open_space("bounded")
    for number in range(4):
        put(space, number)
    config = f"{server.log.removesuffix('log')}config.yaml"
    with open(config, "w") as file:
        file.write(TENANTS.format(pages=2))
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: held(space, range(4)), 2)
    with open(config, "w") as file:
        file.write("tenants: [{name: bounded, host_pages: -1}]")
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "cannot be read again" in open(server.log).read(), True)
    assert "host_pages" in open(server.log).read()
    put(space, 9)
    assert held(space, [*range(4), 9]) == 2  # as it was
    with open(config, "w") as file:
        file.write(TENANTS.format(pages=8))
    server.process.send_signal(signal.SIGHUP)

    def stores_another(numbers=iter(range(100, 10_000))):
        number = next(numbers)
        put(space, number)
        return held(space, range(100, number + 1))
    eventually(stores_another, 8)


def test_errors_name_no_namespace_of_another_tenant(run, v1):
    _, open_space = run
    open_space("bounded")
    with pytest.raises(grpc.RpcError) as refused:
        Space(v1, open_space("bounded").channel, "model", shape=Shape(layers=2), tenant="curious", create=False)
    assert "no namespace has the fingerprint" in refused.value.details()
    assert "open is" not in refused.value.details()
