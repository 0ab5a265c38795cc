#include "proto/wire/namespace_spec.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "proto/convert/convert.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

NamespaceSpec MakeSpec() {
  NamespaceSpec spec;
  spec.model = "smollm2-135m";
  spec.geometry = {
      .layers = 30, .kv_heads = 3, .k_head_dim = 64, .v_head_dim = 64, .page_tokens = 64};
  return spec;
}

TEST(NamespaceSpecTest, SurvivesTheProtoRoundTrip) {
  NamespaceSpec spec = MakeSpec();
  spec.codec.bits = {{.k = 4, .v = 2}};
  spec.codec.transform_hash = std::string(32, '\x07');
  v1::NamespaceSpec proto;
  ToProto(spec, &proto);
  EXPECT_THAT(FromProto(proto), IsOkAndHolds(spec));
}

TEST(NamespaceSpecTest, EveryDifferenceChangesTheFingerprintAndIsNamed) {
  const NamespaceSpec spec = MakeSpec();
  NamespaceSpec other = spec;
  other.codec.group = 32;
  EXPECT_NE(Fingerprint(spec), Fingerprint(other));
  EXPECT_EQ(DescribeDifference(spec, other), "codec.group 0 / 32");
  other = spec;
  other.model_revision = "main";
  EXPECT_NE(Fingerprint(spec), Fingerprint(other));
  EXPECT_EQ(DescribeDifference(spec, spec), "");
}

TEST(NamespaceSpecTest, RefusesWhatCannotBe) {
  NamespaceSpec spec = MakeSpec();
  spec.geometry.k_head_dim = 72;
  EXPECT_THAT(ValidateNamespaceSpec(spec),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found 72")));
  spec = MakeSpec();
  spec.codec.bits = {{.k = 3, .v = 2}};
  EXPECT_THAT(ValidateNamespaceSpec(spec),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found 3")));
  spec = MakeSpec();
  spec.model.clear();
  EXPECT_THAT(ValidateNamespaceSpec(spec),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model")));
}

}  // namespace
}  // namespace oscarkv
