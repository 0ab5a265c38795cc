"""A few kills and stalls at named places of the program, of another seed each time: `./run faults` does them for longer."""

import json
import pathlib
import subprocess
import sys

KILLS = 12
PROGRAM = pathlib.Path(__file__).parents[1] / "torture" / "faults.py"


def test_kills_and_stalls_at_named_places(build_dir, tmp_path, summaries):
    report = tmp_path / "faults.json"
    run = subprocess.run([sys.executable, PROGRAM, "--kills", str(KILLS), "--build-dir", build_dir, "--json", report],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(report.read_text())
    assert found["kills"] == KILLS and found["wrong"] == 0
    summaries.append(f"faults at named places: kills {found['kills']}, stalls {found['stalls']}, reads {found['reads']}, "
                     f"wrong {found['wrong']}, longest wait {found['longest_wait_s']} s (deadline {found['deadline_s']}), "
                     f"longest until memory was back {found['longest_until_memory_was_back_s']} s (--seed {found['seed']})")
