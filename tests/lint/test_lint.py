"""The linters find what they are for: each rule is shown a file that breaks it and one that keeps it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import layering
import limits

LAYERS = layering.read_layers("""
kernels/base  |                          | absl
server        | kernels/base             | absl
server/rpc    | kernels/base server/core generated | absl grpc
client/cpp    | kernels/base             | absl
tests         | kernels server client tests | gtest
""")


def violations(path, *lines):
    return layering.check(path, "\n".join(lines), LAYERS)


def test_allowed_includes_pass():
    assert not violations("server/rpc/service.cc", '#include "server/rpc/service.h"', "#include <vector>", "#include <sys/mman.h>",
                          '#include "absl/status/status.h"', "#include <grpcpp/grpcpp.h>", '#include "oscarkv/v1/types.pb.h"')


def test_server_and_client_never_include_each_other():
    assert "may include" in violations("client/cpp/client.cc", '#include "server/core/store.h"')[0]
    assert "may include" in violations("server/core/store.cc", '#include "client/cpp/client.h"')[0]


def test_third_party_names_are_fenced():
    assert "grpc is not allowed" in violations("kernels/base/bytes.h", "#include <grpcpp/grpcpp.h>")[0]
    assert "known library" in violations("kernels/base/bytes.h", "#include <boost/asio.hpp>")[0]


def test_proto_types_stay_out_of_the_core():
    assert violations("server/core/store.cc", '#include "oscarkv/v1/types.pb.h"')


def test_only_tests_include_tests():
    assert "only tests" in violations("kernels/base/bytes.h", '#include "tests/support/fake.h"')[0]
    assert not violations("tests/base/bytes_test.cc", '#include "tests/support/fake.h"')


def test_includes_start_at_the_root():
    assert "root" in violations("server/core/store.cc", '#include "store.h"')[0]


def test_a_folder_without_a_line_is_reported():
    assert "no line" in violations("elsewhere/x.cc", "#include <vector>")[0]


def test_the_longest_folder_counts():
    assert "grpc is not allowed" in violations("server/main.cc", "#include <grpcpp/grpcpp.h>")[0]


def test_long_files_are_reported():
    assert "601 lines" in limits.check_source("server/core/x.cc", "int x;\n" * 601)[0]
    assert not limits.check_source("server/core/x.cc", "int x;\n" * 600)


def test_banned_words_are_reported_in_product_code_only():
    for line in ("thread.detach();", 'getenv("HOME")', "std::this_thread::sleep_for(d);", "using namespace std;",
                 "#ifdef OSCARKV_CUDA", "std::cout << x;"):
        assert limits.check_source("server/core/x.cc", line), line
        assert not limits.check_source("tests/core/x_test.cc", line), line
    assert not limits.check_source("server/core/x.cc", "// never .detach() a thread")


def test_header_guards_follow_the_path():
    assert limits.check_source("server/core/x.h", "#ifndef X_H\n")
    assert not limits.check_source("server/core/x.h", "#ifndef OSCARKV_SERVER_CORE_X_H_\n")


def test_documents_have_one_top_heading_and_live_links(tmp_path):
    (tmp_path / "there.md").write_text("# There\n")
    assert not limits.check_document(tmp_path, "a.md", "# A\n[there](there.md) [web](https://example.org)\n")
    assert "not there" in limits.check_document(tmp_path, "a.md", "# A\n[gone](gone.md)\n")[0]
    assert "2 top headings" in limits.check_document(tmp_path, "a.md", "# A\n# B\n")[0]
    assert not limits.check_document(tmp_path, "a.md", "# A\n```\n# a shell comment\n```\n")


def test_sources_that_no_target_owns_are_reported(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text("oscarkv_library(NAME x SRCS a.cc)")
    assert limits.unowned_sources(tmp_path, ["CMakeLists.txt", "a.cc", "b.cc"]) == ["b.cc: no CMakeLists.txt names it"]
