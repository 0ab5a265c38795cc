// proto/README.md is what other implementations are written from: its worked example must be true.
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <google/protobuf/text_format.h>

#include "kernels/base/bytes.h"
#include "kernels/base/sha256.h"
#include "proto/convert/convert.h"
#include "proto/wire/namespace_spec.h"
#include "proto/wire/page_key.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

class ReadmeExampleTest : public ::testing::Test {
 protected:
  ReadmeExampleTest() {
    std::ifstream file(OSCARKV_SOURCE_DIR "/proto/README.md");
    readme_.assign(std::istreambuf_iterator<char>(file), {});
  }

  // The next fenced block, without its fences.
  std::string NextBlock(std::string_view language) {
    const std::string fence =
        absl::StrCat("\n```", absl::string_view(language.data(), language.size()), "\n");
    const size_t first = readme_.find(fence, from_);
    if (first == std::string::npos) return "(no such block)";
    const size_t begin = first + fence.size();
    const size_t end = readme_.find("```\n", begin);
    from_ = end;
    return readme_.substr(begin, end - begin);
  }

 private:
  std::string readme_;
  size_t from_ = 0;
};

TEST_F(ReadmeExampleTest, FingerprintIsThatOfTheTextAndOfTheSpec) {
  v1::NamespaceSpec proto;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(NextBlock("textproto"), &proto));
  const std::string canonical = NextBlock("text");
  const std::string fingerprint = NextBlock("text");
  EXPECT_EQ(absl::BytesToHexString(Sha256Of(AsBytes(canonical))) + "\n", fingerprint);
  const absl::StatusOr<NamespaceSpec> spec = FromProto(proto);
  ASSERT_OK(spec.status());
  EXPECT_EQ(absl::BytesToHexString(Fingerprint(*spec)) + "\n", fingerprint);
}

TEST_F(ReadmeExampleTest, PageKeysAreThoseOfTheScheme) {
  NextBlock("text");
  NextBlock("text");
  std::string keys;
  for (const std::string& key : ChainKeys(std::vector<uint32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}, 4))
    absl::StrAppend(&keys, absl::BytesToHexString(key), "\n");
  EXPECT_EQ(NextBlock("text"), keys);
}

}  // namespace
}  // namespace oscarkv
