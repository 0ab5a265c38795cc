"""Holds every #include against tests/lint/layers.txt.

    layering.py [ROOT]     prints one line a violation; exit status 1 when there are any

Two more rules are built in: generated protobuf headers stay out of our own headers (except in proto/convert, server/rpc
and tests), so that proto types never reach the core; and nothing includes tests/ but tests.
"""

import pathlib
import re
import subprocess
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')
GENERATED = "oscarkv/v1/"
THIRD_PARTY = {
    "absl/": "absl", "grpcpp/": "grpc", "grpc/": "grpc", "google/protobuf/": "protobuf", "hwy/": "hwy", "Eigen/": "Eigen",
    "nlohmann/": "nlohmann", "prometheus/": "prometheus", "yaml-cpp/": "yaml", "CLI/": "cli11", "pybind11/": "pybind11",
    "openssl/": "openssl", "gtest/": "gtest", "gmock/": "gtest", "benchmark/": "benchmark", "liburing": "liburing",
    "cuda": "cuda", "nccl": "nccl",
}
SYSTEM = ("sys/", "netinet/", "arpa/", "linux/", "bits/", "experimental/")
OURS = ("kernels/", "proto/", "server/", "client/", "tests/")
PROTO_IN_HEADERS = ("proto/convert/", "server/rpc/", "server/config/", "server/transport/", "client/cpp/wire.h", "client/cpp/shm_link.h", "tests/")


class Layer:
    """One line of layers.txt."""

    def __init__(self, folder, ours, third_party):
        self.folder = folder
        self.ours = ours
        self.third_party = third_party

    def covers(self, path):
        return path == self.folder or path.startswith((self.folder + "/", self.folder + "."))


def read_layers(text):
    """Layers of the text, longest folder first."""
    layers = []
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if line:
            folder, ours, third_party = (part.strip() for part in line.split("|"))
            layers.append(Layer(folder, ours.split(), third_party.split()))
    return sorted(layers, key=lambda layer: -len(layer.folder))


def includes(text):
    """(line number, quoted, name) of every include."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match[1] == '"', match[2]


def third_party_name(header):
    return next((name for prefix, name in THIRD_PARTY.items() if header.startswith(prefix)), None)


def violation(path, layer, quoted, header):
    """Why `path` may not include `header`, or None."""
    if header.startswith(GENERATED):
        if "generated" not in layer.ours:
            return "generated protobuf headers are not allowed here"
        if path.endswith(".h") and not path.startswith(PROTO_IN_HEADERS):
            return "generated protobuf headers do not belong in headers"
        return None
    if header.startswith(OURS):
        if header.startswith("tests/") and not path.startswith("tests/"):
            return "only tests include tests"
        allowed = [layer.folder, str(pathlib.PurePosixPath(path).parent), *layer.ours]
        if any(header.startswith((folder + "/", folder + ".")) for folder in allowed):
            return None
        return f"{layer.folder} may include {', '.join(layer.ours) or 'nothing of ours'}"
    name = third_party_name(header)
    if name:
        return None if name in layer.third_party else f"{name} is not allowed in {layer.folder}"
    if "/" in header and not header.startswith(SYSTEM):
        return "not a known library: name it in tests/lint/layering.py"
    return "write includes from the repository root" if quoted else None


def check(path, text, layers):
    """Violations of one file, as printable lines."""
    layer = next((layer for layer in layers if layer.covers(path)), None)
    if layer is None:
        return [f"{path}: no line of layers.txt covers this folder"]
    return [f"{path}:{number}: includes {header}: {why}"
            for number, quoted, header in includes(text)
            if (why := violation(path, layer, quoted, header))]


def main(root):
    layers = read_layers((root / "tests/lint/layers.txt").read_text())
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.h", "*.cc", "*.cu"], cwd=root, check=True,
                            capture_output=True, text=True).stdout.split()
    found = [line for path in listed if (root / path).exists() for line in check(path, (root / path).read_text(), layers)]
    print("\n".join(found) or f"layering: {len(listed)} files, no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
