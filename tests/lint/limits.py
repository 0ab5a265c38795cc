"""Limits and habits that a machine can check: file length, banned words, stray sources, links and headings of documents.

    limits.py [ROOT]     prints one line a violation; exit status 1 when there are any
"""

import pathlib
import re
import subprocess
import sys

LINES_MAX = 600
# (what, why, where it is allowed); product code only: tests may sleep no more than product code, but may read the
# environment and print.
BANNED = [
    (re.compile(r"\bgetenv\s*\("), "product code does not read the environment", ()),
    (re.compile(r"\.detach\s*\(\)"), "every thread is joined by its owner", ("client/python/",)),
    (re.compile(r"\bsleep_for\b|\busleep\s*\("), "wait on a condition or a clock", ()),
    (re.compile(r"\bstd::cout\b|\bstd::cerr\b|\bprintf\s*\("), "only programs print",
     ("client/cli/", "server/main.cc", "kernels/base/log.cc")),
    (re.compile(r"\busing namespace\b"), "no using namespace", ()),
    (re.compile(r"#\s*ifn?def\s+OSCARKV_(?!\w+_H_)"), "back ends are classes, not #ifdef", ()),
]
BANNED_EVERYWHERE = [(re.compile(r"\b(TODO|FIXME|XXX)\b"), "finish it or leave it out")]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def check_source(path, text):
    """Violations of a C++ or Python source."""
    lines = text.splitlines()
    found = []
    if len(lines) > LINES_MAX:
        found.append(f"{path}: {len(lines)} lines, the most is {LINES_MAX}")
    product = not path.startswith("tests/") and path.endswith((".h", ".cc", ".cu"))
    for number, line in enumerate(lines, 1):
        code = line.split("//")[0]
        if product:
            found += [f"{path}:{number}: {why}" for word, why, allowed in BANNED
                      if word.search(code) and not path.startswith(allowed or ("\0",))]
        if path != "tests/lint/limits.py":
            found += [f"{path}:{number}: {why}" for word, why in BANNED_EVERYWHERE if word.search(line)]
    if path.endswith(".h") and not path.startswith("client/python/"):
        guard = "OSCARKV_" + re.sub(r"[/.-]", "_", path).upper() + "_"
        toggles = path.endswith("-inl.h")  # included once for each instruction set, with Highway's toggling guard
        if (guard if toggles else f"#ifndef {guard}") not in text:
            found.append(f"{path}: the header guard must be {guard}")
    return found


def check_document(root, path, text):
    """Violations of a Markdown file: links that lead nowhere, not one top heading."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    found = [f"{path}: link to {target}, which is not there" for target in LINK.findall(prose)
             if "://" not in target and not (root / path).parent.joinpath(target).exists()]
    tops = len(re.findall(r"^# ", prose, flags=re.M))
    if tops != 1:
        found.append(f"{path}: {tops} top headings, expected one")
    return found


def unowned_sources(root, paths):
    """C++ sources that no CMakeLists.txt names: they would rot unseen."""
    lists = {path: (root / path).read_text() for path in paths if path.endswith("CMakeLists.txt")}
    everything = "\n".join(lists.values())
    return [f"{path}: no CMakeLists.txt names it" for path in paths
            if path.endswith((".cc", ".cu")) and pathlib.PurePosixPath(path).name not in everything
            and path != "tests/fuzz/replay_main.cc"]


def main(root):
    paths = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, check=True, capture_output=True,
                           text=True).stdout.splitlines()
    paths = [path for path in paths if (root / path).is_file()]
    found = unowned_sources(root, paths)
    for path in paths:
        if path.endswith((".h", ".cc", ".cu", ".py")):
            found += check_source(path, (root / path).read_text())
        elif path.endswith(".md"):
            found += check_document(root, path, (root / path).read_text())
    print("\n".join(found) or f"limits: {len(paths)} files, no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
