"""Pages on disk as an operator sees them: there after kill -9, fetched, verified, deleted; and a folder that is another's."""

import json
import subprocess

import numpy as np
import pytest
import tensor_files
from store_cli import PAGE, PAGES, PUT, TOKENS, WHOLE, Cli, make_kv
from support.server_process import DEADLINE_S, ServerProcess

CAPACITY = "600MiB"  # two segments


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tier"


@pytest.fixture
def server(build_dir, folder):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    config = folder.parent / "all.yaml"
    config.write_text("disk: {admit: all}\n")
    process = ServerProcess(build_dir, "unix", ["--config", str(config), "--disk-path", str(folder), "--disk-capacity", CAPACITY])
    yield process
    process.close()


def counter(cli, name):
    return cli.json("stat")["counters"][f"oscarkv_disk_{name}_total"]


def put(cli, tmp_path, first_token, tensors):
    """Puts a sequence and waits until it is on disk; returns the file of its tokens."""
    source = tensor_files.write(tmp_path / "in.safetensors", tensors)
    tokens = tmp_path / f"{first_token}.json"
    tokens.write_text(json.dumps(list(range(first_token, first_token + TOKENS))))
    cli("put", source, "--model", "m", "--tokens", tokens, *PUT)
    return tokens


def test_put_durable_waits_for_the_disk(build_dir, server, tmp_path):
    cli = Cli(build_dir, server.endpoint)
    source = tensor_files.write(tmp_path / "in.safetensors", make_kv())
    cli("put", source, "--model", "m", "--durable", *PUT)
    assert counter(cli, "written_pages") == PAGES
    server.kill()
    server.start()
    assert tiers(cli) == ["disk"] * PAGES


def test_put_durable_needs_a_disk(build_dir, tmp_path):
    server = ServerProcess(build_dir, "unix")
    source = tensor_files.write(tmp_path / "in.safetensors", make_kv())
    done = Cli(build_dir, server.endpoint).run("put", source, "--model", "m", "--durable", *PUT)
    server.close()
    assert done.returncode == 1 and "no disk tier" in done.stderr


def tiers(cli):
    return [page["tier"] for page in cli.json("ls", "m")["pages"]]


def test_pages_outlive_the_server(build_dir, server, tmp_path):
    cli = Cli(build_dir, server.endpoint)
    tensors = make_kv()
    tokens = put(cli, tmp_path, 1000, tensors)
    server.wait_until(lambda: counter(cli, "written_pages") == PAGES, "the pages are on disk")
    server.kill()
    server.start()
    assert tiers(cli) == ["disk"] * PAGES
    put(cli, tmp_path, 5000, make_kv(seed=2))
    assert sorted(tiers(cli)) == ["disk"] * PAGES + ["host"] * PAGES

    cli("get", "m", "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    found, _ = tensor_files.read(tmp_path / "out.safetensors")
    for side in "kv":
        np.testing.assert_array_equal(found[side], tensors[side][:, :WHOLE])
    assert counter(cli, "loaded_pages") == PAGES
    assert tiers(cli) == ["host"] * 2 * PAGES

    server.wait_until(lambda: counter(cli, "written_pages") == PAGES, "the other sequence is on disk too")
    assert cli.json("verify")["pages_checked"] == 4 * PAGES  # in memory and on disk
    cli("rm", "m", "--all", "--yes")
    assert tiers(cli) == []
    assert next(tier for tier in cli.json("stat")["tiers"] if tier["tier"] == "disk")["used_bytes"] == 0


def test_a_second_server_and_another_owner_are_refused(build_dir, server, folder, tmp_path):
    def refusal(*arguments):
        done = subprocess.run([build_dir / "bin" / "oscarkvd", "--listen", f"unix:{tmp_path}/s", "--metrics-listen", "off",
                               "--disk-path", folder, "--disk-capacity", CAPACITY, *arguments],
                              capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 1
        return done.stderr

    said = refusal()
    assert f"in use by 'oscarkvd' (process {server.pid}); 'oscarkvd' (process " in said
    server.kill()
    config = tmp_path / "other.yaml"
    config.write_text("disk: {owner: somebody else}\n")
    assert "belongs to 'oscarkvd', this is 'somebody else'" in refusal("--config", config)
    server.start()
