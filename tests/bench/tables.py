"""The tables that `./run bench` prints, from Google Benchmark's JSON."""


class Medians:
    """The median repetition of each benchmark, by its name."""

    def __init__(self, report):
        repeated = {}
        for run in report["benchmarks"]:
            if run.get("run_type") == "iteration" and not run.get("error_occurred"):
                repeated.setdefault(run["run_name"], []).append(run)
        self._repeated = repeated
        self._runs = {name: sorted(runs, key=lambda run: run["cpu_time"])[len(runs) // 2]
                      for name, runs in repeated.items()}

    def names(self, prefix):
        return [name for name in self._runs if name.startswith(prefix)]

    def has(self, name):
        return name in self._runs

    def gigabytes(self, name):
        """GB (1e9 bytes) a second of processor time."""
        return self._runs[name]["bytes_per_second"] / 1e9

    def microseconds(self, name):
        scale = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}[self._runs[name]["time_unit"]]
        return self._runs[name]["cpu_time"] * scale

    def nanoseconds(self, name):
        """Of processor time, an item."""
        return 1e9 / self._runs[name]["items_per_second"]

    def counter(self, name, counter):
        """The greatest of all repetitions: counters are limits and sizes."""
        return max(run[counter] for run in self._repeated[name])


def layout(header, rows):
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        return "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                         for i, (cell, width) in enumerate(zip(row, widths))).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


_DIM = 128
_KERNELS = ("AVX3_DL", "AVX3", "AVX2", "SSE4", "NEON", "portable")
# Products of bytes that an instruction takes for each float multiply-add of the same vector.
_BYTE_PRODUCTS = {"AVX3_DL": 4, "AVX3": 4, "AVX2": 4}
_CODEC_HEADING = f"""\
codec: one thread, D = {_DIM}, 2 bits, GB/s of bf16 bytes
  beside: the float route for the same instructions (dequantise, Eigen's product; encoding clips with std::nth_element),
          or memcpy
  limit:  what arithmetic (this machine's float multiply-adds; four byte products each where the kernels use them) and
          memcpy allow"""


def codec(medians):
    """Each kernel set beside the float route compiled for the same instructions, and beside what the machine allows."""
    memcpy = medians.gigabytes("BM_Memcpy") if medians.has("BM_Memcpy") else float("inf")

    def arithmetic(kernels):
        # Each element takes D multiply-adds and is 2 bytes of bf16.
        name = f"BM_PeakFma/{kernels}"
        return medians.counter(name, "fma_per_s") / _DIM * 2 / 1e9 if medians.has(name) else float("inf")

    works = (
        ("decode, inverse transform", "BM_Decode", "BM_DecodeFloatRoute/{}",
         lambda kernels: min(memcpy, arithmetic(kernels) * _BYTE_PRODUCTS.get(kernels, 1))),
        ("decode, no transform", "BM_DecodeTransformed", "BM_Memcpy", lambda kernels: memcpy),
        ("encode, transform, clip", "BM_Encode", "BM_EncodeFloatRoute/{}",
         lambda kernels: min(memcpy, arithmetic(kernels))))
    rows = []
    for words, name, other, limit_of in works:
        for kernels in _KERNELS:
            if not medians.has(f"{name}/{kernels}") or not medians.has(other.format(kernels)):
                continue
            ours, beside = medians.gigabytes(f"{name}/{kernels}"), medians.gigabytes(other.format(kernels))
            limit = limit_of(kernels)
            rows.append([words, kernels, f"{ours:.2f}", f"{beside:.2f}", f"{ours / beside:.2f}x", f"{limit:.2f}",
                         f"{100 * ours / limit:.0f} %"])
    return f"{_CODEC_HEADING}\n{layout(['work', 'kernels', 'ours', 'beside', 'ratio', 'limit', 'of limit'], rows)}"


def policy(medians):
    """Eviction policies over a million pages: each operation and its share of what is put off."""
    rows = []
    for name in ("lru", "learnt"):
        for pages in (1, 64):
            prefix = f"{name}/{pages}"
            rows.append([name, str(pages), *(f"{medians.nanoseconds(f'{what}/{prefix}'):.0f}" for what in ("Use", "PutAndEvict")),
                         f"{medians.counter(f'PutAndEvict/{prefix}', 'bytes_a_page'):.0f}"])
    header = ["policy", "pages a request", "use, ns a page", "put and evict, ns a page", "bytes a page"]
    return "eviction policies over 1,000,000 pages (target: 1 us an operation)\n" + layout(header, rows)


def store(medians):
    """Microseconds a call, and for what moves pages, GB/s beside a copy of the page."""
    rows = []
    for name, words in (("BM_Lookup128/pages:16384", "look 128 keys up, 16 K pages"),
                        ("BM_Lookup128/pages:1048576", "look 128 keys up, 1 M pages"),
                        ("BM_LookupMiss", "look a missing prefix up"),
                        ("BM_LeaseAndRelease128", "lease 128 pages and release them"),
                        ("BM_Touch128", "touch 128 pages")):
        if medians.has(name):
            rows.append([words, f"{medians.microseconds(name):.2f}", "", "", ""])
    for name, words in (("BM_PutAndEvict", "put a page into a full store"),
                        ("BM_PinVerifyCopy", "pin, verify, copy a page")):
        if medians.has(name) and medians.has("BM_MemcpyPage"):
            ours, copy = medians.gigabytes(name), medians.gigabytes("BM_MemcpyPage")
            rows.append([words, f"{medians.microseconds(name):.2f}", f"{ours:.2f}", f"{copy:.2f}",
                         f"{100 * ours / copy:.0f} %"])
    lines = ["store: in one process; pages of SmolLM2-135M, 16 tokens, PACKED, where bytes move",
             layout(["call", "us", "GB/s", "memcpy GB/s", "share"], rows)]
    if medians.has("BM_Lookup128/pages:1048576"):
        each = medians.counter("BM_Lookup128/pages:1048576", "index_bytes_per_page")
        lines.append(f"memory that describes a page: {each:.0f} bytes")
    if medians.has("BM_ReEncode"):
        cpu, k, v = (medians.counter("BM_ReEncode", name) for name in ("cpu_ms_per_page", "k_error", "v_error"))
        lines.append(f"re-encode a WIDE page of Qwen3-8B (64 tokens, 9.4 MB) in place: {cpu:.1f} ms of CPU time; "
                     f"relative error of Gaussian rows: K {k:.3f}, V {v:.3f}")
    return "\n".join(lines)


def service(reports):
    """What a worker sees: 2-bit pages beside the same pages in the model's dtype, through one server."""
    packed, wide = reports["packed"], reports["wide"]
    rows = []
    for ours, beside in zip(packed["phases"], wide["phases"]):
        wire, rate, other = ours["wire_gb_per_s"], ours["pages_per_s"], beside["pages_per_s"]
        rows.append([ours["phase"], f"{ours['p50_ms']:.2f}", f"{ours['p99_ms']:.2f}", f"{wire:.2f}" if wire else "",
                     f"{rate:.0f}", f"{other:.0f}", f"{rate / other:.2f}x"])
    shape, calls = packed["geometry"], f"{packed['concurrency']} workers, {packed['pages_a_call']} pages a call"
    return f"""\
service: oscarkvd on this machine, through a Unix socket; {calls}
  pages:  {shape["page_tokens"]} tokens, {shape["layers"]} layers, {shape["kv_heads"]} KV heads, D = \
{shape["head_dim"]}: {packed["page_bytes"] / 1e6:.2f} MB packed, {packed["page_model_bytes"] / 1e6:.2f} MB wide
  calls:  encoding and decoding are part of them; get-decoded: the server decodes
  beside: the same pages, wide
{layout(["call", "p50 ms", "p99 ms", "wire GB/s", "pages/s", "beside", "ratio"], rows)}"""


def _median(values):
    return sorted(values)[len(values) // 2]


def disk(figures):
    """Durable writes and verified reads of the disk store beside fio's plain ones, and the index's rebuilding."""
    rows = []
    for page_bytes, rounds in figures["rounds"].items():
        for work in ("write", "read"):
            ours = _median([one[work] for one in rounds])
            row = [f"{work} {int(page_bytes) >> 10} KiB", f"{ours / 1e9:.2f}", "", "", ""]
            if rounds[0][f"fio {work}"] is not None:
                # Rounds are compared each with itself: the machine is not the same from one to the next.
                shares = [100 * one[work] / one[f"fio {work}"] for one in rounds]
                row[2:] = [f"{_median([one[f'fio {work}'] for one in rounds]) / 1e9:.2f}", f"{_median(shares):.0f} %",
                           f"{min(shares):.0f}..{max(shares):.0f} %"]
            rows.append(row)
    first = next(iter(figures["rounds"].values()))[0]
    opened = _median([one["pages"] / one["seconds"] for one in figures["open"]])
    of_cpu = _median([one["pages"] / one["cpu_seconds"] for one in figures["open"]])
    index = figures["open"][0]["index_bytes"] / figures["open"][0]["pages"]
    amplification = ", ".join(f"{int(size) >> 10} KiB pages {rounds[0]['write amplification']:.3f}"
                              for size, rounds in figures["rounds"].items())
    return f"""\
disk: the disk tier's store, {first["backend"]}, queue depth {figures["depth"]}; pages verified when read, durable when written
  beside: fio with the same sizes and depth, direct, on the same file system; reads are of the same files
{layout(["work", "GB/s", "fio GB/s", "share", "of the rounds"], rows)}
index from the tables of {figures["open"][0]["pages"]} pages: {opened / 1e6:.2f} M pages/s, {of_cpu / 1e6:.2f} M for a second of processor time (start and end of the program included); memory of a page: {index:.0f} bytes
bytes written to the device for each byte of records: {amplification}"""
