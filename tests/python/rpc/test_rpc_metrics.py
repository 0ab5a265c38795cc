"""A server that runs shows the metrics that server/metrics/METRICS.md lists, and no others; what some of them say."""

import pathlib
import re
import tempfile

import pytest

from . import transforms
from .pages import Shape, key_of, wide_page
from .store import Session

DOCUMENT = pathlib.Path(__file__).parents[3] / "server" / "metrics" / "METRICS.md"
FOLDER = tempfile.TemporaryDirectory(prefix="oscarkv_metrics_")
SERVER = {"capacity": "16MiB", "metrics_listen": "127.0.0.1:0",
          "config": f"{{disk: {{path: {FOLDER.name}/disk, capacity: 64MiB, segment: 1MiB, admit: all}},"
                    " tenants: [{name: limited, host: 8MiB, host_pages: 1000, disk: 16MiB, inflight: 4MiB, protected: 1MiB}]}"}
SHAPE = Shape()
KEYS = [key_of(f"page {i}") for i in range(4)]


def documented():
    """type, unit, labels, there and help of every metric of the document."""
    lines = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in DOCUMENT.read_text().splitlines()
             if line.startswith("| `")]
    names = [line[0] for line in lines]
    assert names == sorted(set(names))
    return {name: rest for name, *rest in lines}


def scraped(text):
    """type, label names and help of every metric of /metrics."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    labels = {}
    for name, inside in re.findall(r"^([a-z_]+)(?:\{(.*)\})? [^ ]+$", text, re.M):
        family = name if name in kinds else re.sub("_(bucket|sum|count)$", "", name)
        labels[family] = [label for label in re.findall(r'(\w+)="', inside) if label != "le"]
    assert set(labels) <= set(kinds)
    return {name: (kind, labels.get(name), helps[name]) for name, kind in kinds.items() if name.startswith("oscarkv_")}


@pytest.fixture
def busy(open_space, v1):
    """A namespace of a tenant with limits, of which something was put, looked up, leased and fetched."""
    file = transforms.identity(SHAPE)
    space = open_space(transform_hash=transforms.hash_of(file), tenant="limited")
    space.upload(file, transforms.hash_of(file))
    space.put_sequence(KEYS, [wide_page(SHAPE, i) for i in range(4)])
    with Session(space) as session:
        space.lookup(KEYS, lease=True, session_id=session.id)
        space.get(KEYS)
        session.end()
    return space


def test_metrics_are_those_of_the_document(busy, server):
    _, text = server.metrics()
    found, listed = scraped(text), documented()
    # This build may have no GPU tier to ask for; the document's test against the code knows one.
    expected = {name for name, (_, _, _, there, _) in listed.items() if there != "GPU tier"}
    assert set(found) == expected, "not as server/metrics/METRICS.md has it"
    for name, (kind, labels, said) in found.items():
        listed_kind, unit, listed_labels, _, listed_help = listed[name]
        assert (kind, said) == (listed_kind, listed_help) and unit
        assert labels == [label for label in listed_labels.split(", ") if label], f"labels of {name}"


def test_hits_are_counted_by_tier_and_depth(busy, server):
    def hits():
        samples, _ = server.metrics()
        return {series: value for series, value in samples.items() if series.startswith("oscarkv_hit_pages_total")}
    before = hits()
    busy.get(KEYS[:3])
    grown = {series: value - before[series] for series, value in hits().items() if value != before[series]}
    assert grown == {'oscarkv_hit_pages_total{tier="host",depth="1024"}': 3}
    counters = busy.stats().counters
    assert counters['oscarkv_hit_pages_total{tier="host",depth="1024"}'] >= 7
    assert counters["oscarkv_fetch_hits_total"] >= 7 and counters['oscarkv_puts_total{outcome="OK"}'] >= 4


def test_leases_tell_their_age(busy, server, v1):
    with Session(busy) as session:
        busy.lookup(KEYS, lease=True, session_id=session.id)
        samples, _ = server.metrics()
        assert 0 < samples["oscarkv_oldest_lease_seconds"] < 60
        session.end()
    samples, _ = server.metrics()
    assert samples["oscarkv_oldest_lease_seconds"] == 0
    assert samples["oscarkv_lease_age_seconds_count"] >= 2
    assert samples['oscarkv_lease_age_seconds_bucket{le="3600"}'] == samples["oscarkv_lease_age_seconds_count"]


def test_a_scrub_tells_how_far_it_is(busy, server, v1, eventually):
    def scrub():
        list(busy.admin.Verify(v1.VerifyRequest()))
        samples, _ = server.metrics()
        return samples["oscarkv_scrub_pages"], samples["oscarkv_scrubbed_pages"]
    eventually(scrub, (8, 8))  # four pages, in memory and, once they are written, on disk
    assert server.metrics()[0]["oscarkv_disk_write_amplification_ratio"] >= 1
