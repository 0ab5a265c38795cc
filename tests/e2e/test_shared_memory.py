"""Pages by memory that workers and oscarkvd both map: by nothing else where nothing else may be used, out of containers that
share nothing but the socket, and by gRPC where the memory is out of reach."""

import os
import subprocess

import oscarkv
import pytest
from support import shared_memory
from support.server_process import ServerProcess
from support.worker_process import WorkerProcess
from worker import SPEC, TRANSFORMS, Cache, keys_of

PAGES = 6
KEYS = keys_of(PAGES)
ALONE = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def server(build_dir, tmp_path):
    """Pages go by shared memory or not at all."""
    config = tmp_path / "oscarkvd.yaml"
    config.write_text(shared_memory.CONFIG)
    process = ServerProcess(build_dir, "unix", ["--config", str(config)])
    yield process
    process.close()


@pytest.fixture
def any_path(build_dir):
    process = ServerProcess(build_dir, "unix")
    yield process
    process.close()


def push(space):
    cache = Cache(seed=1)
    cache.fill(KEYS)
    return space.push(cache.kv, cache.slots(PAGES), KEYS)


def fetch(space, **options):
    cache = Cache(seed=2)
    return space.fetch(cache.kv, cache.slots(PAGES), KEYS, **options)


def share(prefill, decode):
    """The paths that pages took from one worker to the other."""
    pushed = prefill.ask("push", pages=PAGES)
    assert pushed["statuses"] == ["OK"] * PAGES and pushed["error"] == ""
    assert decode.ask("lookup", pages=PAGES, lease=True)["pages"] == PAGES
    fetched = decode.ask("fetch", pages=PAGES)
    assert fetched["pages"] == PAGES and fetched["right"] and fetched["bytes_wire"] == pushed["bytes_wire"]
    return pushed["path"], fetched["path"]


def test_workers_of_one_host_share_pages_by_memory(server):
    with WorkerProcess(server.endpoint) as prefill, WorkerProcess(server.endpoint) as decode:
        assert share(prefill, decode) == ("shm", "shm")
        assert shared_memory.regions(server.pid) == {"arena": 1, "fence": 2, "staging": 1}
        prefill.end()
        decode.end()
    server.wait_until(lambda: shared_memory.regions(server.pid) == {"arena": 1}, "what the workers had comes back")


def test_workers_in_containers_that_share_nothing_but_the_socket(server):
    if subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow namespaces of one's own (unshare)")
    folder = os.path.dirname(server.endpoint.removeprefix("unix:"))
    # The socket's folder has another name in there; where it was, /run and /dev/shm are empty.
    hide = f"""mount -t tmpfs none /run && mkdir /run/store && mount --bind {folder} /run/store && mount -t tmpfs none {folder} \
&& mount -t tmpfs none /dev/shm && hostname container && test ! -e {folder}/socket && exec "$@" """
    inside = [*ALONE, "sh", "-c", hide, "sh"]
    with WorkerProcess("unix:/run/store/socket", inside=inside) as prefill, \
            WorkerProcess("unix:/run/store/socket", inside=inside) as decode:
        assert share(prefill, decode) == ("shm", "shm")
    server.wait_until(lambda: shared_memory.regions(server.pid) == {"arena": 1}, "what the workers had comes back")


def test_layers_heads_and_pieces_of_a_page(server):
    space = oscarkv.Client(server.endpoint).open(SPEC, transforms=TRANSFORMS)
    assert push(space).path == "shm"
    whole = fetch(space)
    for options in ({"layers": (1, 2)}, {"heads": (1, 2)}, {"layers": (0, 1), "heads": (0, 1)}):
        part = fetch(space, **options)
        assert (part.pages, part.path, part.error) == (PAGES, "shm", "")
        assert part.bytes_wire < whole.bytes_wire
    cache = Cache(seed=2)
    pending = space.start_fetch(cache.kv, cache.slots(PAGES), KEYS, layers_at_once=1)
    assert (pending.result().pages, pending.result().path) == (PAGES, "shm")


def test_a_server_that_was_started_again_is_mapped_again(server):
    client = oscarkv.Client(server.endpoint)
    space = client.open(SPEC, transforms=TRANSFORMS)
    push(space)
    hit = space.lookup(KEYS, lease=True)
    assert hit.pages == PAGES
    server.kill()
    server.start()
    report = server.wait_until(lambda: (found := fetch(space, hit=hit)).error == "" and found, "the new server is found")
    assert report.pages == 0  # it has nothing, whatever the old one's memory holds
    assert push(space).path == "shm"
    report = fetch(space)
    assert (report.pages, report.path) == (PAGES, "shm")
    assert client.counters["reopens"] == 1


def no_socket(path):
    os.unlink(path)


def of_another_user(path):
    os.chown(path, 12345, 12345)


def not_a_socket(path):
    os.unlink(path)
    open(path, "w").close()


@pytest.mark.parametrize("spoil", [no_socket, of_another_user, not_a_socket])
def test_memory_that_is_out_of_reach_is_gone_without(any_path, spoil):
    if spoil is of_another_user and os.geteuid() != 0:
        pytest.skip("only root can give a socket to another user")
    spoil(any_path.endpoint.removeprefix("unix:") + ".shm")
    with WorkerProcess(any_path.endpoint) as prefill, WorkerProcess(any_path.endpoint) as decode:
        assert share(prefill, decode) == ("grpc", "grpc")


def test_without_another_path_what_is_out_of_reach_is_a_miss(server):
    no_socket(server.endpoint.removeprefix("unix:") + ".shm")
    space = oscarkv.Client(server.endpoint).open(SPEC, transforms=TRANSFORMS)
    pushed, fetched = push(space), fetch(space)
    assert pushed.statuses == ["SKIPPED"] * PAGES and "forbids grpc for a push" in pushed.error
    assert fetched.statuses == ["MISS"] + ["SKIPPED"] * (PAGES - 1) and "forbids grpc for a fetch" in fetched.error
