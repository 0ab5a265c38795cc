#include "kernels/codec/geometry.h"

#include <functional>
#include <string>

#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

Geometry Valid() {
  return {.layers = 36, .kv_heads = 8, .k_head_dim = 128, .v_head_dim = 128, .page_tokens = 64};
}

struct BadGeometry {
  const char* field;
  const char* range;
  std::function<void(Geometry&)> spoil;
};

TEST(GeometryTest, EveryFieldIsHeldToItsRangeByName) {
  EXPECT_OK(ValidateGeometry(Valid()));
  const BadGeometry cases[] = {
      {"layers", "1..512, found 0", [](Geometry& g) { g.layers = 0; }},
      {"layers", "1..512, found 513", [](Geometry& g) { g.layers = 513; }},
      {"kv_heads", "1..256, found 0", [](Geometry& g) { g.kv_heads = 0; }},
      {"kv_heads", "1..256, found 257", [](Geometry& g) { g.kv_heads = 257; }},
      {"k_head_dim", "16..256, found 8", [](Geometry& g) { g.k_head_dim = 8; }},
      {"k_head_dim", "multiple of 16, found 72", [](Geometry& g) { g.k_head_dim = 72; }},
      {"v_head_dim", "16..256, found 272", [](Geometry& g) { g.v_head_dim = 272; }},
      {"page_tokens", "1..4096, found 0", [](Geometry& g) { g.page_tokens = 0; }},
      {"page_tokens", "1..4096, found 4097", [](Geometry& g) { g.page_tokens = 4097; }},
      {"dtype", "found code 9", [](Geometry& g) { g.dtype = static_cast<DType>(9); }},
  };
  for (const BadGeometry& bad : cases) {
    Geometry geometry = Valid();
    bad.spoil(geometry);
    EXPECT_THAT(ValidateGeometry(geometry),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(bad.field), HasSubstr(bad.range))));
  }
}

TEST(GeometryTest, AcceptsTheEndsOfEveryRange) {
  EXPECT_OK(ValidateGeometry(
      {.layers = 1, .kv_heads = 1, .k_head_dim = 16, .v_head_dim = 256, .page_tokens = 1}));
  EXPECT_OK(ValidateGeometry(
      {.layers = 512, .kv_heads = 256, .k_head_dim = 256, .v_head_dim = 16, .page_tokens = 4096}));
}

struct BadSpec {
  const char* what;
  const char* found;
  std::function<void(CodecSpec&)> spoil;
};

TEST(CodecSpecTest, EveryFieldIsHeldToItsValuesByName) {
  Geometry geometry = Valid();
  geometry.v_head_dim = 96;
  EXPECT_OK(ValidateCodecSpec(CodecSpec{}, geometry));
  const BadSpec cases[] = {
      {"bits must have 1 entry or one for each of 36", "found 2",
       [](CodecSpec& s) { s.bits.resize(2); }},
      {"bits must have 1 entry", "found 0", [](CodecSpec& s) { s.bits.clear(); }},
      {"bits of entry 0", "found 3", [](CodecSpec& s) { s.bits[0].k = 3; }},
      {"bits of entry 35", "found 8",
       [](CodecSpec& s) {
         s.bits.resize(36);
         s.bits[35].v = 8;
       }},
      {"group must be 16, 32, 64 or 0", "found 128", [](CodecSpec& s) { s.group = 128; }},
      {"group 64 does not divide the head dims", "128 and 96", [](CodecSpec& s) { s.group = 64; }},
      {"transform_hash must be 32 bytes or empty", "found 31",
       [](CodecSpec& s) { s.transform_hash.assign(31, 'x'); }},
      {"params must be fp16 or fp32", "found code 0",
       [](CodecSpec& s) { s.params = static_cast<ParamsDType>(0); }},
      {"wide_basis", "found code 7",
       [](CodecSpec& s) { s.wide_basis = static_cast<WideBasis>(7); }},
  };
  for (const BadSpec& bad : cases) {
    CodecSpec spec;
    bad.spoil(spec);
    EXPECT_THAT(ValidateCodecSpec(spec, geometry),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(bad.what), HasSubstr(bad.found))));
  }
}

TEST(CodecSpecTest, OneEntryOfBitsCountsForEveryLayer) {
  CodecSpec spec;
  spec.bits = {{.k = 4, .v = 2}};
  EXPECT_EQ(spec.layer_bits(17).k, 4);
  spec.bits = {{.k = 4, .v = 2}, {.k = 2, .v = 4}};
  EXPECT_EQ(spec.layer_bits(1).v, 4);
}

}  // namespace
}  // namespace oscarkv
