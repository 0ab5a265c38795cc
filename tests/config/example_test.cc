// deploy/config/oscarkvd.yaml claims to hold every field at its default.
#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <google/protobuf/descriptor.h>

#include "server/config/load.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

constexpr char kExample[] = OSCARKV_SOURCE_DIR "/deploy/config/oscarkvd.yaml";
constexpr uint64_t kMemory = uint64_t{16} << 30;

TEST(ExampleConfigTest, SaysWhatTheDefaultsAre) {
  const auto example = LoadConfig(kExample);
  ASSERT_OK(example.status());
  EXPECT_EQ(WithDefaults(*example, kMemory).DebugString(), WithDefaults({}, kMemory).DebugString());
}

void ExpectAllFields(const google::protobuf::Descriptor& message, const std::string& text) {
  for (int i = 0; i < message.field_count(); ++i) {
    const auto* field = message.field(i);
    EXPECT_THAT(text, HasSubstr(field->name() + ":"));
    if (field->message_type() != nullptr) ExpectAllFields(*field->message_type(), text);
  }
}

TEST(ExampleConfigTest, NamesEveryField) {
  std::ifstream file(kExample);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  ExpectAllFields(*v1::ServerConfig::descriptor(), text);
}

TEST(ExampleConfigTest, WhatIsPrintedCanBeReadAgain) {
  const v1::ServerConfig config = WithDefaults({}, kMemory);
  const auto again = ParseConfig(ConfigToYaml(config), "printed");
  ASSERT_OK(again.status());
  EXPECT_EQ(again->DebugString(), config.DebugString());
}

}  // namespace
}  // namespace oscarkv
