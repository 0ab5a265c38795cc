// Where an engine says that its rows are, held against the memory that it says there is.
#include "client/gpu/engine_bounds.h"

#include <vector>

#include "gmock/gmock.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

constexpr Geometry kGeometry{
    .layers = 2, .kv_heads = 2, .k_head_dim = 64, .v_head_dim = 64, .page_tokens = 4};
constexpr uint64_t kBytes = uint64_t{100} * 256;  // of 100 slots of 2 heads of 128 bytes

// NOLINTNEXTLINE(performance-no-int-to-ptr): nothing is there
std::byte* At(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

struct Side {
  std::vector<std::byte*> layers = {At(1 << 20), At(2 << 20)};
  EngineView view;
  uint64_t bytes = kBytes;

  Side() {
    view.slots = 100;
    view.k.block_stride = view.k.token_stride = 256;
    view.k.head_stride = 128;
  }
  absl::Status Check() {
    view.k.layer_base = layers;
    return CheckEngineSide(view.k, view, kGeometry, 64, bytes, "K");
  }
};

TEST(EngineBounds, RowsThatEndWithTheMemoryFit) { EXPECT_OK(Side().Check()); }

TEST(EngineBounds, OneByteLessDoesNot) {
  Side side;
  --side.bytes;
  EXPECT_THAT(side.Check(), StatusIs(absl::StatusCode::kInvalidArgument,
                                     HasSubstr("end at byte 25600 of a layer, it has 25599")));
}

TEST(EngineBounds, BlocksCountToTheirLastToken) {
  Side side;
  // Heads of blocks of 16 tokens: 100 slots lie in 7 blocks.
  side.view.block_tokens = 16;
  side.view.k.block_stride = 4096;
  side.view.k.head_stride = 2048;
  side.view.k.token_stride = 128;
  side.bytes = uint64_t{7} * 4096;
  EXPECT_OK(side.Check());
  --side.bytes;
  EXPECT_THAT(side.Check(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(EngineBounds, StridesThatWouldOverflowAreSeen) {
  Side side;
  side.view.slots = INT32_MAX;
  side.view.k.block_stride = INT64_MAX - 15;
  EXPECT_THAT(side.Check(), StatusIs(absl::StatusCode::kInvalidArgument));
}

struct Slip {
  const char* name;
  void (*make)(Side& side);
  const char* says;
};
void PrintTo(const Slip& slip, std::ostream* out) { *out << slip.name; }

class EngineSlips : public ::testing::TestWithParam<Slip> {};

TEST_P(EngineSlips, AreNamed) {
  Side side;
  GetParam().make(side);
  EXPECT_THAT(side.Check(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().says)));
}

INSTANTIATE_TEST_SUITE_P(
    , EngineSlips,
    ::testing::Values(
        Slip{"LayerLeftOut", [](Side& s) { s.layers.pop_back(); },
             "expected 2 layer base pointers, found 1"},
        Slip{"NullLayer", [](Side& s) { s.layers[1] = nullptr; }, "layer 1"},
        Slip{"MisalignedLayer", [](Side& s) { s.layers[1] = At((2 << 20) + 8); },
             "layer 1: expected a pointer that is a multiple of 16, found 0x200008"},
        Slip{"MisalignedStride", [](Side& s) { s.view.k.token_stride = 264; }, "found 264"},
        Slip{"NegativeStride", [](Side& s) { s.view.k.block_stride = -256; }, "found -256"},
        Slip{"Fp32", [](Side& s) { s.view.k.dtype = DType::kFp32; }, "found fp32"},
        Slip{"NoSlots", [](Side& s) { s.view.slots = 0; }, "found 0"},
        Slip{"EmptyBlocks", [](Side& s) { s.view.block_tokens = 0; }, "blocks of 0"}),
    [](const auto& slip) { return slip.param.name; });

TEST(SlotBounds, EachSlotIsChecked) {
  const std::vector<int64_t> slots = {0, 5, 9, -1};
  EXPECT_OK(CheckSlots(slots, 1, 4, -1, 10));
  EXPECT_THAT(CheckSlots(slots, 1, 4, 0, 10),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token 3 must be 0..9")));
  EXPECT_THAT(CheckSlots(slots, 1, 4, -1, 9),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("must be -1..8, found 9")));
  EXPECT_THAT(CheckSlots(slots, 2, 4, -1, 10),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("need 8 slots, found 4")));
}

}  // namespace
}  // namespace oscarkv::client
