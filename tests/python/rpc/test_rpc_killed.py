"""A client process that is killed: what it held comes back by itself."""

import pathlib
import subprocess
import sys

from .pages import Shape, key_of
from .store import Space, held


def test_killed_client_leaves_its_whole_page_and_nothing_else(v1, server, channel, stubs_folder, eventually):
    model = "killed"
    client = subprocess.Popen([sys.executable, "-m", "rpc.killed_client", server.endpoint, stubs_folder, model],
                              cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    with client:
        assert client.stdout.readline() == "ready\n"
        space = Space(v1, channel, model)
        before = held(space.stats())
        assert before.items() >= {"sessions": 1, "leases": 1, "inflight_bytes": Shape().page_bytes(1)}.items()
        client.kill()
    eventually(lambda: {**held(space.stats()), "used_bytes": 0},
               {"used_bytes": 0, "leased_bytes": 0, "leases": 0, "sessions": 0, "inflight_bytes": 0})
    assert held(space.stats())["used_bytes"] < before["used_bytes"]
    assert space.each([key_of("leased"), key_of("half")]) == [v1.OK, v1.MISS]
    assert space.clear().removed == 1
    assert held(space.stats())["used_bytes"] == 0
