"""Two workers in processes of their own share a prefix through a server, over real sockets."""

import pathlib
import re
import subprocess
import sys

from support.server_process import DEADLINE_S
from support.worker_process import WorkerProcess


def test_what_one_process_pushes_another_fetches(server):
    with WorkerProcess(server.endpoint) as prefill, WorkerProcess(server.endpoint) as decode:
        pushed = prefill.ask("push", pages=6)
        assert pushed["statuses"] == ["OK"] * 6 and pushed["error"] == ""
        assert (pushed["wide"], pushed["packed"]) == (2, 4)  # a page of sinks, and the recent window
        assert pushed["bytes_wire"] < pushed["bytes_model"] / 2
        found = decode.ask("lookup", pages=8, lease=True)
        assert found["pages"] == 6 and found["error"] == "" and found["lease"]
        assert found["encodings"] == ["wide"] + ["packed"] * 4 + ["wide"]
        fetched = decode.ask("fetch", pages=6)
        assert fetched["statuses"] == ["OK"] * 6 and fetched["pages"] == 6
        assert fetched["right"] and fetched["untouched"]
        assert fetched["bytes_wire"] == pushed["bytes_wire"]


def test_pages_outlive_the_worker_that_pushed_them(server):
    with WorkerProcess(server.endpoint) as prefill:
        prefill.ask("push", pages=3)
    with WorkerProcess(server.endpoint) as decode:
        assert decode.ask("lookup", pages=3)["pages"] == 3
        fetched = decode.ask("fetch", pages=3)
        assert fetched["pages"] == 3 and fetched["right"]


def test_a_shorter_prefix_and_another_text_share_only_what_they_should(server):
    with WorkerProcess(server.endpoint) as prefill, WorkerProcess(server.endpoint) as decode:
        prefill.ask("push", pages=6)
        found = decode.ask("lookup", pages=2)
        assert found["pages"] == 2 and found["encodings"] == ["wide", "packed"]
        fetched = decode.ask("fetch", pages=2)
        assert fetched["pages"] == 2 and fetched["right"]
        assert decode.ask("lookup", pages=6, text="another")["pages"] == 0
        assert decode.ask("fetch", pages=6, text="another")["statuses"] == ["MISS"] + ["SKIPPED"] * 5


def test_both_push_the_same_prefix_and_the_first_wins(server):
    with WorkerProcess(server.endpoint) as one, WorkerProcess(server.endpoint) as other:
        assert one.ask("push", pages=4)["statuses"] == ["OK"] * 4
        assert other.ask("push", pages=4)["statuses"] == ["EXISTS"] * 4


def test_readme_example_in_python_runs_as_it_stands(server, tmp_path):
    readme = pathlib.Path(__file__).parents[2] / "client" / "README.md"
    script = tmp_path / "share.py"
    script.write_text(re.search(r"```python\n(.*?)```", readme.read_text(), re.S)[1])

    def run(what):
        return subprocess.run([sys.executable, script, what, server.endpoint], check=True, timeout=DEADLINE_S,
                              capture_output=True, text=True).stdout

    assert run("fetch") == "reuse 0 tokens, prefill 647\n"
    assert re.fullmatch(r"pushed 3 wide and 7 packed pages: \d+ bytes for \d+; no error\n", run("push"))
    assert run("fetch") == "reuse 640 tokens, prefill 7\n"


def test_readme_example_in_cpp_runs_as_it_stands(server, build_dir):
    def run(what):
        return subprocess.run([build_dir / "bin" / "client_readme_example", what, server.endpoint], check=True,
                              timeout=DEADLINE_S, capture_output=True, text=True).stdout

    assert run("fetch") == "reuse 0 tokens\n"
    assert run("push") == f"pushed {2 * 640 * 4 * 2 * 64 * 2} bytes: OK\n"
    assert run("fetch") == "reuse 640 tokens\n"
