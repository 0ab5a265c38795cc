"""A short run of `./run torture --server`: what oscarkvd says is durable outlives kill -9."""

import pytest
from torture import server_torture


def test_what_is_durable_outlives_kill_9(build_dir, tmp_path, summaries):
    if not (build_dir / "bin" / "oscarkvd").exists():
        pytest.skip("oscarkvd is not built")
    kills = 6
    counts = server_torture.torture(build_dir, tmp_path, kills, seed=20)
    summaries.append(f"torture of oscarkvd: kills {kills}, {counts}")
    assert counts.acknowledged == counts.found > 0
    assert counts.missing == counts.wrong == 0
