"""The commands of `oscarkv` that store, give and remove pages: output, JSON, exit codes, refusals."""

import json
import os
import re

import numpy as np
import pytest
import tensor_files
from store_cli import DIM, HEADS, LAYERS, PAGE, PAGES, PUT, TOKENS, WHOLE, Cli, make_kv
from support.server_process import ServerProcess
from support.terminal import open_terminal


@pytest.fixture(scope="module")
def store(build_dir):
    """A server that the tests of this file share; each has namespaces of its own."""
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    process = ServerProcess(build_dir, "unix")
    yield process
    process.close()


@pytest.fixture
def cli(build_dir, store):
    return Cli(build_dir, store.endpoint)


@pytest.fixture
def model(request):
    return request.node.name


def array_of(value):
    return value[1] if isinstance(value, tuple) else value


@pytest.fixture
def kv(tmp_path):
    return tensor_files.write(tmp_path / "kv.safetensors", make_kv())


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(list(range(1000, 1000 + TOKENS))))
    return path


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_wide_pages_come_back_bit_for_bit(cli, tmp_path, tokens, model, dtype):
    tensors = make_kv(dtype)
    source = tensor_files.write(tmp_path / "in.safetensors", tensors)
    said = cli("put", source, "--model", model, "--tokens", tokens, *PUT)
    assert f"{WHOLE} tokens in {PAGES} pages, {TOKENS - WHOLE} after the last whole page left out" in said
    assert said.count(" OK\n") == PAGES
    cli("get", model, "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    found, metadata = tensor_files.read(tmp_path / "out.safetensors")
    for side in "kv":
        assert np.array_equal(found[side], array_of(tensors[side])[:, :WHOLE])
    assert metadata["format"] == "oscarkv-kv-1" and metadata["model"] == model


def test_put_prints_the_get_that_fetches_what_it_stored(cli, tmp_path, kv, model):
    said = cli("put", kv, "--model", model, *PUT)
    command = re.search(r"^get them back: oscarkv (get .*) -o OUT", said, re.M)[1].split()
    cli(*command, "-o", tmp_path / "out.safetensors")
    found, _ = tensor_files.read(tmp_path / "out.safetensors")
    assert np.array_equal(found["k"], tensor_files.read(kv)[0]["k"][:, :WHOLE])


def test_packed_pages_come_back_as_the_codec_decodes_them(cli, build_dir, tmp_path, tokens, model):
    tensors = make_kv("F32")
    source = tensor_files.write(tmp_path / "in.safetensors", tensors)
    put = cli.json("put", source, "--model", model, "--tokens", tokens, "--transform", "hadamard", *PUT)
    encodings = [page["encoding"] for page in put["pages"]]
    # The sinks fill the first page; the recent window starts within the last but one.
    assert encodings == ["wide"] + ["packed"] * (PAGES - 3 + 1) + ["wide"]
    assert put["bytes_stored"] == put["bytes_wire"] == sum(page["bytes"] for page in put["pages"]) < put["bytes_model"]
    assert [page["first_position"] for page in put["pages"]] == list(range(0, WHOLE, PAGE))

    got = {}
    for form in ("stored", "decoded"):
        out = tmp_path / f"{form}.safetensors"
        got[form] = cli.json("get", model, "--tokens", tokens, "-o", out, "--form", form)
        assert got[form]["output"] == str(out) and got[form]["tokens"] == WHOLE
        assert got[form]["packed_pages"] == encodings.count("packed") and got[form]["last_key"] == put["last_key"]
    assert got["stored"]["bytes_wire"] == put["bytes_stored"] and got["decoded"]["bytes_wire"] == put["bytes_model"]
    assert (tmp_path / "stored.safetensors").read_bytes() == (tmp_path / "decoded.safetensors").read_bytes()

    found, _ = tensor_files.read(tmp_path / "stored.safetensors")
    packed = slice(PAGE, WHOLE - PAGE)
    for layer in range(LAYERS):
        one = {side: tensors[side][layer] for side in "kv"}
        tensor_files.write(tmp_path / "layer.safetensors", one)
        for verb, name in (("encode", "layer"), ("decode", "codes")):
            done = tensor_files.run(build_dir, verb, tmp_path / f"{name}.safetensors", "-o",
                                    tmp_path / ("codes.safetensors" if verb == "encode" else "back.safetensors"),
                                    "--transform", "hadamard")
            assert done.returncode == 0, done.stderr
        back, _ = tensor_files.read(tmp_path / "back.safetensors")
        for side in "kv":
            np.testing.assert_allclose(found[side][layer, packed], back[side][packed], atol=1e-5)
            assert np.array_equal(found[side][layer, :PAGE], tensors[side][layer, :PAGE])
            assert np.array_equal(found[side][layer, -PAGE:], tensors[side][layer, WHOLE - PAGE:WHOLE])


def test_dump_of_several_sequences(cli, tmp_path, model):
    folder = tmp_path / "dump"
    folder.mkdir()
    tensors = make_kv()
    for layer in range(LAYERS):
        tensor_files.write(folder / f"layer_{layer:03d}.safetensors",
                           {"q": tensors["k"][layer], "k": tensors["k"][layer], "v": tensors["v"][layer],
                            "seq_lens": np.array([50, 100], np.int64)})
    said = cli.refusal("put", folder, "--model", model, *PUT)
    assert "layer_000.safetensors: the dump has 2 sequences: choose one with --sequence" in said
    assert "--sequence 2 is not there: the dump has 2" in cli.refusal("put", folder, "--model", model, "--sequence", 2)
    put = cli.json("put", folder, "--model", model, "--sequence", 1, *PUT)
    assert put["tokens"] == 96 and put["tokens_left_out"] == 4
    cli("get", model, put["last_key"], "-o", tmp_path / "out.safetensors")
    found, _ = tensor_files.read(tmp_path / "out.safetensors")
    for side in "kv":
        assert np.array_equal(found[side], tensors[side][:, 50:146])


def test_put_again_finds_the_pages_there(cli, kv, model):
    first = cli.json("put", kv, "--model", model, *PUT)
    again = cli.json("put", kv, "--model", model, *PUT)
    assert {page["outcome"] for page in first["pages"]} == {"OK"}
    assert {page["outcome"] for page in again["pages"]} == {"EXISTS"}
    assert again["last_key"] == first["last_key"] and again["namespace"] == first["namespace"]


def test_other_values_for_the_same_tokens_are_refused(cli, tmp_path, kv, tokens, model):
    cli("put", kv, "--model", model, "--tokens", tokens, *PUT)
    other = tensor_files.write(tmp_path / "other.safetensors", make_kv(seed=2))
    done = cli.run("put", other, "--model", model, "--tokens", tokens, *PUT, "--json")
    assert done.returncode == 1
    assert [page["outcome"] for page in json.loads(done.stdout)["pages"]] == ["CONFLICT"] * PAGES
    assert f"{PAGES} of {PAGES} pages were not stored, from page 0 on: CONFLICT" in done.stderr
    cli("get", model, "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    assert np.array_equal(tensor_files.read(tmp_path / "out.safetensors")[0]["v"],
                          tensor_files.read(kv)[0]["v"][:, :WHOLE])


def test_get_takes_part_of_a_prefix_only_when_told(cli, tmp_path, kv, tokens, model):
    put = cli.json("put", kv, "--model", model, "--tokens", tokens, *PUT)
    cli("rm", model, put["pages"][4]["key"])
    out = tmp_path / "out.safetensors"
    assert f"4 of {PAGES} pages are stored; --partial" in cli.refusal("get", model, "--tokens", tokens, "-o", out)
    assert not out.exists()
    assert cli.json("get", model, "--tokens", tokens, "-o", out, "--partial")["pages"] == 4
    assert tensor_files.read(out)[0]["k"].shape == (LAYERS, 4 * PAGE, HEADS, DIM)
    cli("rm", model, "--all", "--yes")
    assert f"0 of {PAGES} pages are stored (NOT_FOUND)" in cli.refusal("get", model, "--tokens", tokens, "-o", out,
                                                                       "--partial")


def test_ls_lists_namespaces_and_pages(cli, kv, model):
    put = cli.json("put", kv, "--model", model, "--transform", "identity", *PUT)
    space, = [s for s in cli.json("ls")["namespaces"] if s["model"] == model]
    assert space["fingerprint"] == put["namespace"] and space["wide_pages"] + space["packed_pages"] == PAGES
    assert space["stored_bytes"] == put["bytes_stored"] and space["model_bytes"] == put["bytes_model"]
    assert space["saving"] == pytest.approx(1 - put["bytes_stored"] / put["bytes_model"])
    assert space["geometry"] == {"layers": LAYERS, "kv_heads": HEADS, "k_head_dim": DIM, "v_head_dim": DIM,
                                 "page_tokens": PAGE, "dtype": "fp16"}
    assert re.search(rf"^{space['fingerprint'][:12]}  {re.escape(model)} ", cli("ls"), re.M)

    listed = cli.json("ls", space["fingerprint"][:8])
    assert not listed["more"] and listed["namespace"] == space["fingerprint"]
    keys = [page["key"] for page in put["pages"]]
    assert [page["key"] for page in listed["pages"]] == keys
    assert [page["parent"] for page in listed["pages"]] == [None, *keys[:-1]]
    for page, stored in zip(listed["pages"], put["pages"]):
        assert page == {"key": stored["key"], "parent": page["parent"], "first_position": stored["first_position"],
                        "encoding": stored["encoding"], "tier": "host", "bytes": stored["bytes"]}
    some = cli.run("ls", model, "--max", 2)
    assert len(some.stdout.splitlines()) == 3 and "more than 2 pages" in some.stderr
    assert cli.json("ls", model, "--max", 2)["more"]
    assert not cli.json("ls", model, "--max", PAGES)["more"]


def test_put_options_reach_the_namespace(cli, kv, model):
    put = cli.json("put", kv, "--model", model, "--transform", "identity", "--k-bits", 4, "--group", 32,
                   "--params", "fp32", "--tenant", "t", "--revision", "r", *PUT)
    space, = [space for space in cli.json("ls")["namespaces"] if space["model"] == model]
    assert (space["tenant"], space["model_revision"], space["hash_scheme"]) == ("t", "r", "sha256-content-v1")
    assert space["codec"]["bits"] == [{"k": 4, "v": 2}] and space["codec"]["group"] == 32
    assert space["codec"]["sink_tokens"] == space["codec"]["recent_tokens"] == PAGE
    assert len(space["codec"]["transform_hash"]) == 64
    # 4 and 2 bits an element, and a scale and a zero of 4 bytes for every 32.
    block = PAGE * (DIM // 2 + DIM // 4 + 2 * DIM // 32 * 8)
    assert put["pages"][1]["encoding"] == "packed" and put["pages"][1]["bytes"] == LAYERS * HEADS * block


def test_rm_tells_each_key_its_outcome(cli, kv, model):
    keys = [page["key"] for page in cli.json("put", kv, "--model", model, *PUT)["pages"]]
    removed = cli.json("rm", model, keys[5], keys[7][:10])  # one extends the other
    assert removed["results"] == [{"key": keys[5], "outcome": "OK"}, {"key": keys[7], "outcome": "OK"}]
    assert [page["key"] for page in cli.json("ls", model)["pages"]] == keys[:5]
    done = cli.run("rm", model, keys[7], keys[4], "ab" * 32)
    assert done.returncode == 1 and "2 of 3 pages were not there" in done.stderr
    assert done.stdout == f"{keys[7]}  MISS\n{keys[4]}  OK\n{'ab' * 32}  MISS\n"
    assert "start" in cli.refusal("rm", model, "abc") and "hexadecimal" in cli.refusal("rm", model, "xy")


def test_rm_all_asks(cli, kv, model):
    cli("put", kv, "--model", model, *PUT)
    assert "give keys or --all, found both" in cli.refusal("rm", model, "--all", "abcd")
    assert "found neither" in cli.refusal("rm", model)
    assert "say --yes as well" in cli.refusal("rm", model, "--all", stdin=open("/dev/null"))
    assert len(cli.json("ls", model)["pages"]) == PAGES
    assert cli("rm", model, "--all", "--yes") == f"removed {PAGES} pages\n"
    assert cli("ls", model) == "no pages\n"
    assert cli.json("rm", model, "--all", "-y")["removed"] == 0


def test_rm_all_takes_the_answer_of_a_person(cli, kv, model):
    cli("put", kv, "--model", model, *PUT)
    ours, theirs = open_terminal()
    os.write(ours, b"no\n")
    said = cli.refusal("rm", model, "--all", stdin=theirs)
    assert f"Remove all {PAGES} pages (" in said and f"model {model}? [y/N] " in said and "nothing was removed" in said
    assert len(cli.json("ls", model)["pages"]) == PAGES
    os.write(ours, b"y\n")
    assert cli("rm", model, "--all", stdin=theirs) == f"removed {PAGES} pages\n"
    os.close(ours)
    os.close(theirs)


def test_stat_says_what_is_there(build_dir, server, kv, tokens, tmp_path):
    cli = Cli(build_dir, server.endpoint)
    empty = cli.json("stat")
    assert empty["namespaces"] == [] and empty["lookup"]["hit_rate"] is None and empty["server"] == server.endpoint
    assert "no namespaces" in cli("stat") and cli("ls") == "no namespaces\n"
    put = cli.json("put", kv, "--model", "m", "--tokens", tokens, "--transform", "hadamard", *PUT)
    cli("get", "m", "--tokens", tokens, "-o", tmp_path / "out.safetensors")
    stat = cli.json("stat")
    tier, = stat["tiers"]
    assert tier["tier"] == "host" and tier["capacity_bytes"] == 64 << 20
    assert put["bytes_stored"] <= tier["used_bytes"] < 2 * put["bytes_stored"]
    space, = stat["namespaces"]
    assert (space["model"], space["wide_pages"], space["packed_pages"]) == ("m", 2, PAGES - 2)
    assert stat["lookup"]["hits"] == 2 * PAGES and stat["lookup"]["hit_rate"] == 1.0
    assert stat["fetch"]["pages"] == PAGES and stat["fetch"]["bytes"] == put["bytes_stored"]
    assert stat["put"]["bytes"] == put["bytes_stored"]
    assert stat["epoch"] == empty["epoch"] and stat["uptime_s"] > 0 and stat["version"]
    text = cli("stat")
    assert f"at {server.endpoint}, up " in text and "hits (100.0 %)" in text
    assert re.search(r"^host .* 67\.11 MB ", text, re.M) and re.search(r"^[0-9a-f]{12}  m  +2 ", text, re.M)


def test_tenants_are_seen(build_dir, tmp_path, kv, tokens):
    config = tmp_path / "oscarkvd.yaml"
    config.write_text("tenants:\n  - {name: bounded, host_pages: 3, protected: 1MiB, inflight: 8MiB}\n")
    server = ServerProcess(build_dir, "unix", ["--config", str(config)])
    cli = Cli(build_dir, server.endpoint)
    assert cli.json("stat")["tenants"] == []
    assert "QUOTA" in cli.run("put", kv, "--model", "m", "--tokens", tokens, "--tenant", "bounded", *PUT).stderr
    cli("put", kv, "--model", "m", "--tokens", tokens, "--tenant", "free", *PUT)
    for verb in ("stat", "top --once"):
        bounded, free = cli.json(*verb.split())["tenants"]
        assert bounded["name"] == "bounded" and bounded["host_pages"] == {"used": 3, "limit": 3}
        assert bounded["refused_items"] >= 1 and bounded["protected_host_bytes"] == 1 << 20
        assert bounded["inflight_bytes"] == {"used": 0, "limit": 8 << 20}
        assert free["name"] == "free" and free["host_pages"] == {"used": PAGES, "limit": None}
        assert free["host_bytes"]["used"] == 3 * bounded["host_bytes"]["used"] and free["evicted_pages"] == 0
        text = cli(*verb.split())
        assert re.search(r"^TENANT +HOST +PROTECTED +PAGES +GPU +DISK +IN FLIGHT +EVICTED +REFUSED$", text, re.M)
        assert re.search(r"^bounded .* 1\.05 MB +3 of 3 .* 0 +[1-9][0-9]*$", text, re.M), text
    server.close()


def test_a_transform_set_that_is_needed_is_not_removed(build_dir, server, kv, tokens):
    cli = Cli(build_dir, server.endpoint)
    cli("put", kv, "--model", "m", "--tokens", tokens, "--transform", "hadamard", *PUT)
    space, = cli.json("stat")["namespaces"]
    needed = space["codec"]["transform_hash"]
    message = cli.refusal("transform", "rm", needed)
    assert space["fingerprint"] in message and "of model m" in message and "FAILED_PRECONDITION" in message
    assert "NOT_FOUND" in cli.run("transform", "rm", "ab" * 32).stderr
    assert "pairs of hexadecimal digits" in cli.refusal("transform", "rm", "abc")


def flip_a_byte_of(pid, pattern):
    """Changes one byte of `pattern` where a server holds it in its arena, a mapping of the host tier's size."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            begin, end, flags = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
            begin, size = int(begin, 16), int(end, 16) - int(begin, 16)
            if not flags.startswith("rw") or size < 64 << 20:
                continue
            memory.seek(begin)
            if (at := memory.read(size).find(pattern)) >= 0:
                memory.seek(begin + at)
                memory.write(bytes([pattern[0] ^ 1]))
                return
    raise AssertionError("the server does not hold the bytes")


def test_verify_finds_a_flipped_bit(build_dir, server, kv):
    cli = Cli(build_dir, server.endpoint)
    cli("put", kv, "--model", "m", *PUT)
    assert cli("verify") == f"{PAGES} pages checked, 0 corrupt\n"
    assert cli.json("verify", "--rate", "1GB") == {"pages_checked": PAGES, "pages_total": PAGES, "pages_corrupt": 0}
    row = tensor_files.read(kv)[0]["k"][1, 3 * PAGE, 1].tobytes()  # of page 3
    flip_a_byte_of(server.pid, row)
    done = cli.run("verify", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["pages_corrupt"] == 1
    assert "1 corrupt pages were found and dropped" in done.stderr
    assert len(cli.json("ls", "m")["pages"]) == 3
    assert cli.json("verify")["pages_corrupt"] == 0


VERBS = [("stat",), ("ls",), ("ls", "abcd"), ("rm", "abcd", "--all", "--yes"), ("verify",),
         ("get", "abcd", "1234", "-o", "OUT"), ("put", "KV", "--model", "m"),
         ("top", "--once"), ("bench", "--layers", "1", "--kv-heads", "1", "--seconds", "0.01")]


@pytest.mark.parametrize("json_too", [(), ("--json",)])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_dead_server_is_named(build_dir, tmp_path, kv, verb, json_too):
    address = f"unix:{tmp_path}/nobody"
    words = [{"KV": kv, "OUT": tmp_path / "out"}.get(word, word) for word in verb]
    said = Cli(build_dir, address).refusal(*words, "--timeout", 5, *json_too)
    assert f"no answer from {address}: " in said and "is oscarkvd running there?" in said


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_server_that_stops_answering_is_given_up(build_dir, tmp_path, kv, verb):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    server = ServerProcess(build_dir, "unix")
    server.stop()
    words = [{"KV": kv, "OUT": tmp_path / "out"}.get(word, word) for word in verb]
    assert f"no answer from {server.endpoint}: " in Cli(build_dir, server.endpoint).refusal(*words, "--timeout", 0.2)
    server.close()


@pytest.mark.parametrize("verb", [("ls", "NAME"), ("rm", "NAME", "--all", "--yes"),
                                  ("get", "NAME", "1234", "-o", "OUT")], ids=" ".join)
def test_a_name_must_mean_one_namespace(cli, tmp_path, kv, model, verb):
    for salt in ("a", "b"):
        cli("put", kv, "--model", model, "--salt", salt, *PUT)

    def refusal(name):
        return cli.refusal(*({"NAME": name, "OUT": tmp_path / "out"}.get(word, word) for word in verb))
    several = refusal(model)
    assert "must name one namespace, found 2" in several and several.count(f"  {model}") == 2
    if verb[0] != "ls":  # which lists the namespaces
        assert "no namespace is called ''" in refusal("")
    none = refusal("nowhere")
    assert "no namespace is called 'nowhere'; the server has" in none and f"  {model}" in none


def test_get_says_which_keys_it_cannot_find(cli, tmp_path, kv, tokens, model):
    put = cli.json("put", kv, "--model", model, *PUT)
    out = ("-o", tmp_path / "out")
    assert "found neither" in cli.refusal("get", model, *out)
    assert "found both" in cli.refusal("get", model, "ab", "--tokens", tokens, *out)
    assert "names its pages by sha256-content-v1" in cli.refusal("get", model, "--tokens", tokens, *out)
    assert f"page {'ab' * 32} is not stored" in cli.refusal("get", model, "ab" * 32, *out)
    nowhere = cli.refusal("get", model, put["last_key"], "-o", tmp_path / "no_folder" / "out")
    assert "no_folder" in nowhere


def refuse_put(cli, tmp_path, tensors, *arguments):
    source = tensor_files.write(tmp_path / "bad.safetensors", tensors)
    said = cli.refusal("put", source, "--model", "bad", *PUT, *arguments)
    assert not any(space["model"] == "bad" for space in cli.json("ls")["namespaces"])
    return said


def test_put_refuses_tensors_that_do_not_fit(cli, tmp_path):
    good = make_kv()
    k, v = good["k"], good["v"]
    for tensors, said in [
            ({"k": k}, "bad.safetensors: .*'v'"),
            ({"v": v}, "bad.safetensors: .*'k'"),
            ({"k": k[0], "v": v[0]}, r"k must be \[layers, tokens, kv_heads, head_dim\], found \[150, 2, 64\]"),
            ({"k": k, "v": v[0]}, "'v'.* 4 dimensions"),
            ({"k": k, "v": v[:2]}, r"k \[3, 150, 2, 64\] and v \[2, 150, 2, 64\] must have the same layers"),
            ({"k": k, "v": v[:, :149]}, "must have the same tokens and KV heads"),
            ({"k": k, "v": v[:, :, :1]}, "must have the same tokens and KV heads"),
            ({"k": k, "v": v.astype(np.float32)}, "both the same; found F16 and F32"),
            ({"k": k.astype(np.int64), "v": v.astype(np.int64)}, "F32, F16 or BF16, both the same; found I64"),
            ({"k": k[..., :24], "v": v}, "k_head_dim.* 24"),
            ({"k": k[:0], "v": v[:0]}, "at least one"),
            ({"k": k[:, :15], "v": v[:, :15]}, "there are 15 tokens, a page has 16")]:
        assert re.search(said, refuse_put(cli, tmp_path, tensors)), said


def test_put_refuses_dumps_whose_layers_do_not_fit(cli, tmp_path):
    tensors = make_kv()
    layers = [{"k": tensors["k"][layer], "v": tensors["v"][layer]} for layer in range(2)]

    def refusal(files):
        folder = tmp_path / "dump"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            tensor_files.write(folder / f"{name}.safetensors", content)
        return cli.refusal("put", folder, "--model", "bad", *PUT)
    assert "layer 1 is missing: the next one is 2" in refusal({"layer_0": layers[0], "layer_2": layers[1]})
    assert "layer 0 has 2 files" in refusal({"layer_0": layers[0], "layer_0b": layers[1]})
    assert "the name must hold layer_<number>" in refusal({"first": layers[0]})
    assert "no .safetensors files" in refusal({})
    other = {side: array[:100] for side, array in layers[1].items()}
    said = refusal({"layer_0": layers[0], "layer_1": other})
    assert "layer 1 has 100 tokens" in said and "layer 0 has 150 tokens" in said
    other = {side: array.astype(np.float32) for side, array in layers[1].items()}
    assert "of F32; layer 0" in refusal({"layer_0": layers[0], "layer_1": other})


def test_put_refuses_files_that_are_not_whole(cli, tmp_path, kv):
    data = kv.read_bytes()
    bad = tmp_path / "cut.safetensors"
    for content in (data[:-1], data[:100], data[:4], b"", b"\xff" * 64):
        bad.write_bytes(content)
        assert "cut.safetensors" in cli.refusal("put", bad, "--model", "bad")
    assert "nowhere.safetensors" in cli.refusal("put", tmp_path / "nowhere.safetensors", "--model", "bad")


def test_put_refuses_options_that_do_not_fit(cli, tmp_path, kv):
    tensors = make_kv()
    assert "transform" in refuse_put(cli, tmp_path, tensors, "--transform", kv)
    transform = tensor_files.write_transform(tmp_path / "t.safetensors", {
        side: np.broadcast_to(np.eye(DIM), (LAYERS + 1, 1, DIM, DIM)) for side in "kv"})
    said = refuse_put(cli, tmp_path, tensors, "--transform", transform)
    assert f"for {LAYERS + 1} layers" in said and f"the geometry has {LAYERS}, " in said
    odd = {side: array[..., :48] for side, array in tensors.items()}
    assert "needs a power of two, found head dim 48" in refuse_put(cli, tmp_path, odd, "--transform", "hadamard")
    assert "group" in refuse_put(cli, tmp_path, odd, "--transform", "identity", "--group", 32)
    assert "model" in cli.refusal("put", kv, "--model", "")


@pytest.mark.parametrize("text, said", [
    ("", "must hold a JSON array"), ("[1, 2", "must hold a JSON array"), ('{"a": 1}', "must hold a JSON array"),
    ("[1, -2]", "entry 1 must be a whole number"), ("[1.5]", "entry 0 must be"), ('["\\u001b"]', "entry 0 must be"),
    ("[4294967296]", "entry 0 must be"), ("[1, 2, 3]", "has 3 tokens, k and v have 150")])
def test_put_refuses_tokens_that_do_not_fit(cli, tmp_path, kv, text, said):
    path = tmp_path / "tokens.json"
    path.write_text(text)
    assert said in cli.refusal("put", kv, "--model", "bad", "--tokens", path)


def test_more_pages_than_one_call_takes(build_dir, tmp_path, kv, tokens):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    config = tmp_path / "config.yaml"
    config.write_text("limits:\n  max_items: 4\n")
    server = ServerProcess(build_dir, "unix", ["--config", config])
    cli = Cli(build_dir, server.endpoint)
    put = cli.json("put", kv, "--model", "m", "--tokens", tokens, *PUT)
    assert [page["encoding"] for page in put["pages"]] == ["wide"] * PAGES
    keys = [page["key"] for page in put["pages"]]
    assert [page["key"] for page in cli.json("ls", "m")["pages"]] == keys
    assert len(cli.json("ls", "m", "--max", 6)["pages"]) == 6
    for words in (("--tokens", tokens), (keys[-1][:12],)):
        cli("get", "m", *words, "-o", tmp_path / "out.safetensors")
        assert np.array_equal(tensor_files.read(tmp_path / "out.safetensors")[0]["k"],
                              tensor_files.read(kv)[0]["k"][:, :WHOLE])
    assert {result["outcome"] for result in cli.json("rm", "m", *keys)["results"]} == {"OK"}
    server.close()


def test_addresses_that_are_none_are_refused(build_dir):
    assert "'nowhere'" in Cli(build_dir, "nowhere").refusal("stat")


def test_a_full_store_is_told(build_dir, tmp_path):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    server = ServerProcess(build_dir, "unix", capacity="16MiB")
    source = tensor_files.write(tmp_path / "kv.safetensors", make_kv(tokens=16384))
    done = Cli(build_dir, server.endpoint).run("put", source, "--model", "m", "--page-tokens", 64)
    assert done.returncode == 1 and "NO_SPACE" in done.stdout and "pages were not stored, from page" in done.stderr
    server.close()


def test_names_of_others_cannot_write_to_the_terminal(cli, kv):
    cli("put", kv, "--model", "evil\x1b[2J", *PUT)
    assert "evil\\033[2J" in cli("ls") and "\x1b" not in cli("ls") + cli("stat")
    assert any(space["model"] == "evil\x1b[2J" for space in cli.json("ls")["namespaces"])
    cli("rm", "evil\x1b[2J", "--all", "--yes")


def test_output_that_cannot_be_written_fails(cli):
    with open("/dev/full", "w") as full:
        done = cli.run("stat", stdout=full)
    assert done.returncode == 1 and "the output could not be written" in done.stderr
