"""What the server logs: one JSON object a line when it is not on a terminal."""

import json

import pytest

from .pages import Shape, key_of, wide_page
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


def test_corrupt_page_is_told_with_its_block(space, server):
    page = wide_page(Shape(), 0)
    item = space.item(key_of("corrupt"), page)
    item.block_crc32c[3] ^= 1
    assert space.put([item], [page.data])[0].status == space.v1.CORRUPT
    [line] = [line for line in lines_of(server) if line["message"] == "a page is corrupt"]
    layer, head = divmod(3, Shape().heads)
    assert (line["layer"], line["head"], line["tier"], line["at"]) == (str(layer), str(head), "host", "put")
    assert line["key"] == key_of("corrupt").hex() and line["namespace"] == space.opened.fingerprint.hex()
    assert line["level"] == "error" and "expected crc32c" in line["error"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_end_is_told(build_dir, log_format):
    with Oscarkvd(build_dir, flags=["--log-format", log_format]) as running:
        running.terminate()
        assert running.wait() == 0
        text = open(running.log).read()
        assert "draining" in text.splitlines()[-2] and "stopped" in text.splitlines()[-1]
        assert text.startswith("{") == (log_format == "json")
