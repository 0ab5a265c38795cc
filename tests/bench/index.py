"""The store's index at ten million pages: memory, lookups, and what a lookup tells of another tenant's keys."""

import programs
from tables import layout


def run(program, build_dir, out, _):
    return programs.save(out, programs.figures(build_dir / "bin" / program))


def table(figures):
    columns = ("mean", "p10", "p50", "p90", "p99", "p999")
    rows = [[what, *(f"{figures[key][column]:.1f}" for column in columns)]
            for what, key in (("a prefix of 128 keys that are there", "prefix_us"),
                              ("128 keys of another tenant, each a miss", "anothers_us"),
                              ("128 keys that nobody has, each a miss", "nobodys_us"))]
    probes = figures["absent_probes"]
    return f"""\
index: {figures["pages"] / 1e6:.0f} M pages in prefixes of 128, the learnt policy; no page is looked at twice, so none is in a cache
resident memory of a page: {figures["resident_bytes_per_page"]:.1f} bytes (at most 160), records, tables and policy; filled at \
{figures["pages"] / figures["fill_seconds"] / 1e6:.2f} M pages/s
{layout(["microseconds of one lookup", *columns], rows)}
keys looked up a second: {figures["keys_per_second_1"] / 1e6:.1f} M on one thread, {figures["keys_per_second_2"] / 1e6:.1f} M on two
{probes / 1e6:.0f} M lookups of absent keys: {probes / figures["absent_probes_seconds"] / 1e6:.1f} M keys/s, \
memory grew by {figures["absent_probes_grew_bytes"]} bytes"""
