"""What the server logs: one JSON object a line when it is not on a terminal."""

import json

import pytest

from .process import Oscarkvd
from .store import error_of

SERVER = {"flags": ["--log-level", "debug"]}


def lines_of(server):
    with open(server.log) as log:
        return [json.loads(line) for line in log.read().splitlines()]


def test_start_is_told_with_version_and_epoch(space, server):
    [serving] = [line for line in lines_of(server) if line["message"] == "serving"]
    assert serving["level"] == "info" and serving["epoch"] == str(space.opened.server_epoch)
    assert serving["version"] == space.stats().version and serving["host_bytes"] == "64MiB"


def test_call_that_fails_is_told_with_its_trace(space, server):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = space.v1.LookupRequest(scope=space.scope, keys=[b'"short"\n\x7f'])
    code, message = error_of(lambda: space.cache.Lookup(request, metadata=[("traceparent", trace)]))
    found = [line for line in lines_of(server) if line.get("trace") == trace]
    assert [(line["method"], line["status"], line["error"]) for line in found] == [("Lookup", code, message)]
    assert found[0]["level"] == "debug" and found[0]["peer"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_end_is_told(build_dir, log_format):
    with Oscarkvd(build_dir, flags=["--log-format", log_format]) as running:
        running.terminate()
        assert running.wait() == 0
        text = open(running.log).read()
        assert "draining" in text.splitlines()[-2] and "stopped" in text.splitlines()[-1]
        assert text.startswith("{") == (log_format == "json")
