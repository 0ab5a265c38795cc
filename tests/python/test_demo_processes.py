"""What the demo does when a process that it started fails, and what it prints."""

import io

import pytest

from oscarkv.demo import report
from oscarkv.demo.console import Console, bytes_text
from oscarkv.demo.processes import ProcessFailed, Server, Worker


def test_worker_that_ends_is_reported_with_its_last_words(tmp_path):
    with Worker("X", tmp_path, ["--no-such-option"]) as worker:
        with pytest.raises(ProcessFailed, match="worker X did not answer:\n[^~]*error: "):
            worker.ask({"do": "push", "prompt": []})


def test_server_that_does_not_start_is_reported_with_its_last_words(tmp_path):
    program = tmp_path / "bin" / "oscarkvd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no such port' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ProcessFailed, match="no such port"):
        with Server(tmp_path, tmp_path):
            pass


def test_server_stops_when_its_block_ends(build_dir, tmp_path):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    with Server(build_dir, tmp_path) as server:
        assert server.endpoint.startswith("unix:") and ":" in server.metrics
    assert server.returncode == 0


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_streams_get_plain_lines():
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    with console.step("a", "work"), console.progress("doing", 3) as progress:
        for _ in range(3):
            progress(1)
    console.warn("poor")
    console.table(["name", "n"], [["x", 1], ["longer", 20]])
    assert "\033" not in out.getvalue() and "\r" not in err.getvalue()
    assert "doing: 3/3" in err.getvalue() and "a" in console.seconds
    assert "    longer   20\n" in out.getvalue()


def test_terminals_get_colours():
    out = _Terminal()
    Console(out, io.StringIO()).warn("poor")
    assert out.getvalue() == "\033[31mpoor\033[0m\n"


@pytest.mark.parametrize("count, text", [(5, "5 B"), (1500, "1.50 KB"), (36864000, "36.86 MB"),
                                         (2.5e12, "2500.00 GB")])
def test_bytes_are_told_in_decimal_units(count, text):
    assert bytes_text(count) == text


def test_decode_steps_are_told_beside_bf16():
    figure = {"requests": 8, "tokens": 8000, "us_bf16": 300.4, "us_int2": 200.0, "us_without_attention": 100.0,
              "kl": 0.00125, "kv_bytes_bf16": 7_000_000, "kv_bytes_int2": 1_000_000}
    out = io.StringIO()
    report.print_decode_steps(Console(out, out), "tiny", {"model": [figure], "qwen3_8b_attention": [figure]})
    rows = [line.split() for line in out.getvalue().splitlines() if "8 x 8,000" in line]
    assert rows[0] == "8 x 8,000 300 200 1.50x 100 0.0013 7.00 MB 1.00 MB".split()
    assert rows[1] == "8 x 8,000 300 200 1.50x 7.00 MB 1.00 MB".split()
