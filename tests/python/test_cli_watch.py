"""`oscarkv top` and `oscarkv bench`: what they measure, how they end, and what they leave behind."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import termios

import pytest
import tensor_files
from store_cli import PAGES, PUT, TOKENS, Cli, make_kv
from support.server_process import DEADLINE_S, ServerProcess
from support.terminal import open_terminal


@pytest.fixture
def kv(tmp_path):
    return tensor_files.write(tmp_path / "kv.safetensors", make_kv())


def test_top_prints_one_frame(build_dir, server, kv, tmp_path):
    cli = Cli(build_dir, server.endpoint)
    tokens = tmp_path / "ids.json"
    tokens.write_text(json.dumps(list(range(TOKENS))))
    assert cli.json("top", "--once")["hit_rate"] is None
    put = cli.json("put", kv, "--model", "m", "--tokens", tokens, *PUT)
    cli("get", "m", "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    frame = cli.json("top", "--once")
    assert frame["pages"] == PAGES and frame["hit_rate"] == 1.0 and frame["since_start"]
    assert frame["bytes_in_per_s"] * frame["seconds"] == pytest.approx(put["bytes_stored"])
    assert frame["bytes_out_per_s"] * frame["seconds"] == pytest.approx(put["bytes_stored"])
    hits = frame["hit_pages_per_s"]
    assert hits["host"] * frame["seconds"] == pytest.approx(PAGES) and set(frame["reencoded_pages_per_s"]) == {"outgrown", "pressure"}
    assert set(frame["removed_pages_per_s"]) >= {"evicted", "deleted", "corrupt", "expired"}
    assert frame["gauges"]["oscarkv_index_bytes"] > 0 == frame["gauges"]["oscarkv_oldest_lease_seconds"]
    cli("verify")
    text = cli("top", "--once")
    assert re.search(r"^memory that describes pages [0-9.]+ [kM]?B, of the eviction policy .*; oldest lease 0", text, re.M)
    assert f"the last scrub: {PAGES} of {PAGES} pages" in text
    assert re.search(r"^  pages/s    hit: host [0-9.]+; removed: -; re-encoded: -; scrubbed: [0-9.]+$", text, re.M)
    assert "\033" not in text and "since its start" in text and "hit rate      100.0 %" in text
    assert re.search(r"^host  \[\.*\] ", text, re.M) and f"{PAGES} pages held" in text


def test_top_wants_a_terminal(build_dir, server):
    cli = Cli(build_dir, server.endpoint)
    assert "the output must be a terminal, and is none" in cli.refusal("top")
    assert "--once prints one frame" in cli.refusal("top") and "--once" in cli.refusal("top", "--json")


class Screen:
    """`oscarkv top` on a terminal of its own."""

    def __init__(self, build_dir, address, interval="0.1"):
        self._ours, theirs = open_terminal()
        self._before = termios.tcgetattr(theirs)
        self._theirs = theirs
        command = [build_dir / "bin" / "oscarkv", "top", "--server", address, "--interval", interval]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        self.seen = ""

    def wait_for(self, text):
        self.seen = ""
        while text not in self.seen:
            assert select.select([self._ours], [], [], DEADLINE_S)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._ours, 65536).decode()

    def press(self, key):
        os.write(self._ours, key)

    def ends_well(self):
        self.wait_for("\033[?25h\033[?1049l")
        return self.process.wait(DEADLINE_S) == 0 and termios.tcgetattr(self._theirs) == self._before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def screen(build_dir, server):
    screen = Screen(build_dir, server.endpoint)
    yield screen
    screen.close()


@pytest.mark.parametrize("end", ["q", "Ctrl-C", "SIGTERM"])
def test_top_leaves_the_terminal_as_it_was(screen, end):
    screen.wait_for("\033[?1049h")
    screen.wait_for("in the last 0.")
    assert not termios.tcgetattr(screen._theirs)[3] & termios.ECHO
    if end == "SIGTERM":
        screen.process.send_signal(signal.SIGTERM)
    else:
        screen.press(b"x" + {"q": b"q", "Ctrl-C": b"\x03"}[end])
    assert screen.ends_well()


def test_top_fits_its_window(build_dir, server):
    screen = Screen(build_dir, server.endpoint, interval="3600")
    screen.wait_for("\033[Jno namespaces")
    assert len(screen.seen.splitlines()) > 3
    fcntl.ioctl(screen._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 3, 20, 0, 0))
    screen.process.send_signal(signal.SIGWINCH)
    screen.wait_for("\033[Jq quits")
    frame = screen.seen[screen.seen.rindex("\033[H") + 3:].replace("\033[J", "\033[K").split("\r\n")
    assert [len(line) for line in frame] == [len("\033[K") + length for length in (20, 20, len("q quits"))]
    screen.press(b"q")
    assert screen.ends_well()
    screen.close()


def test_top_waits_for_a_server_that_comes_back(build_dir, kv):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    server = ServerProcess(build_dir, "unix")
    screen = Screen(build_dir, server.endpoint)
    screen.wait_for("in the last ")
    Cli(build_dir, server.endpoint)("put", kv, "--model", "shown", *PUT)
    screen.wait_for("  shown ")
    server.kill()
    screen.wait_for("waiting: no answer from ")
    server.start()
    screen.wait_for("since its start")  # another server as far as the counters go
    screen.wait_for("no namespaces")
    screen.press(b"q")
    assert screen.ends_well()
    screen.close()
    server.close()


SMALL = ("--layers", 2, "--kv-heads", 2, "--head-dim", 64, "--page-tokens", 16, "--pages", 3)


@pytest.mark.parametrize("form", ["packed", "wide"])
def test_bench_measures_and_cleans_up(build_dir, server, form):
    cli = Cli(build_dir, server.endpoint)
    wide = ["--wide"] if form == "wide" else []
    report = cli.json("bench", *SMALL, "--seconds", "0.05", "--concurrency", 2, "--sequences", 2, *wide)
    model_bytes = 2 * 2 * 16 * 2 * 64 * 2
    assert report["encoding"] == form and report["page_model_bytes"] == model_bytes
    assert report["page_bytes"] == model_bytes if wide else report["page_bytes"] < model_bytes / 5
    phases = {phase.pop("phase"): phase for phase in report["phases"]}
    assert list(phases) == ["put", "lookup", "get", "get-decoded"]
    for name, phase in phases.items():
        assert phase["failed"] == 0 and phase["calls"] >= 2 and phase["pages"] == 3 * phase["calls"]
        assert 0 < phase["p50_ms"] <= phase["p99_ms"]
        assert phase["pages_per_s"] * phase["seconds"] == pytest.approx(phase["pages"])
        if name != "lookup":
            wire = report["page_model_bytes" if name == "get-decoded" else "page_bytes"]
            assert phase["wire_gb_per_s"] * 1e9 == pytest.approx(phase["pages_per_s"] * wire)
            assert phase["model_gb_per_s"] * 1e9 == pytest.approx(phase["pages_per_s"] * model_bytes)
    stat = cli.json("stat")
    space, = stat["namespaces"]
    assert (space["model"], space["wide_pages"] + space["packed_pages"]) == ("synthetic", 0)
    assert stat["put"]["bytes"] == phases["put"]["pages"] * report["page_bytes"]
    assert stat["counters"]["oscarkv_fetch_misses_total"] == stat["counters"]["oscarkv_evicted_bytes_total"] == 0

    text = cli("bench", *SMALL, "--seconds", "0.05", *wide)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["PHASE", *phases]
    assert len(cli.json("ls")["namespaces"]) == 1  # the same namespace again


def test_bench_refuses_what_does_not_fit(build_dir, server):
    cli = Cli(build_dir, server.endpoint)
    said = cli.refusal("bench", "--wide", "--seconds", "0.01", "--layers", 8)
    assert "the bench keeps 134.22 MB in the store, which has" in said and "or let it --evict" in said
    assert "k_head_dim" in cli.refusal("bench", "--head-dim", 24)


def start_bench(build_dir, server):
    """A bench that would go on for a long time, which has stored pages."""
    bench = subprocess.Popen([build_dir / "bin" / "oscarkv", "bench", *map(str, SMALL), "--seconds", "3600", "--json",
                              "--server", server.endpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cli = Cli(build_dir, server.endpoint)
    server.wait_until(lambda: cli.json("stat")["put"]["bytes"], "the bench stores pages")
    return bench, cli


def test_bench_removes_its_pages_when_interrupted(build_dir, server):
    bench, cli = start_bench(build_dir, server)
    bench.send_signal(signal.SIGINT)
    out, errors = bench.communicate(timeout=DEADLINE_S)
    assert bench.returncode == 1 and "interrupted; the pages of the bench were removed" in errors
    phase, = json.loads(out)["phases"]
    assert phase["phase"] == "put" and phase["calls"] > 0
    assert cli.json("top", "--once")["pages"] == 0


def test_bench_ends_when_the_server_does(build_dir, server):
    bench, _ = start_bench(build_dir, server)
    server.kill()
    out, errors = bench.communicate(timeout=DEADLINE_S)
    assert bench.returncode == 1 and "calls of put failed, the first" in errors
    assert f"no answer from {server.endpoint}" in errors and json.loads(out)["phases"][0]["failed"] >= 2
