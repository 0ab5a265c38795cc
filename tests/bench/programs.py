"""What the benchmarks' own programs print."""

import json
import subprocess
import sys


def figures(program, *arguments):
    """Runs a program that prints JSON; what it printed."""
    done = subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"run bench: {program.name} failed")
    return json.loads(done.stdout)


def save(out, found):
    """Writes a benchmark's figures to its file; returns them."""
    out.write_text(json.dumps(found, indent=2))
    return found
