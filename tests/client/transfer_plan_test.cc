// Cutting transfers into steps: every block of every page once, in an order that has the first
// layers first, and never more than a stage takes.
#include "client/gpu/transfer_plan.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

constexpr auto kWide = Encoding::kWide;
constexpr auto kPacked = Encoding::kPacked;

// Six layers of three heads; layers differ in their bits and so in their sizes.
struct Layouts {
  Geometry geometry{.layers = 6,
                    .kv_heads = 3,
                    .k_head_dim = 64,
                    .v_head_dim = 64,
                    .page_tokens = 8,
                    .dtype = DType::kBf16};
  PageLayout wide = Make(kWide);
  PageLayout packed = Make(kPacked);

  PageLayout Make(Encoding encoding) const {
    CodecSpec spec;
    spec.bits.assign(geometry.layers, {2, 2});
    spec.bits[2] = {4, 4};
    spec.transform_hash = std::string(32, 't');
    return PageLayout::Create(geometry, spec, encoding).value();
  }
  PageLayouts both() const { return {wide, packed}; }
  TransferPart whole() const { return {{0, geometry.layers}, {0, geometry.kv_heads}}; }
};

// Every (page, layer) that the steps hold; fails where one is held twice or a step has not the
// bytes that its layers have.
std::set<std::pair<uint32_t, uint32_t>> Held(const Layouts& layouts, const TransferPart& part,
                                             const std::vector<TransferStep>& steps,
                                             const std::vector<Encoding>& encodings) {
  std::set<std::pair<uint32_t, uint32_t>> held;
  for (const TransferStep& step : steps) {
    const PageLayout& layout = layouts.both().of(step.encoding);
    EXPECT_EQ(step.bytes, layout.range_bytes(step.layers, part.heads));
    EXPECT_EQ(
        step.offset,
        layout.range_bytes({part.layers.first, step.layers.first - part.layers.first}, part.heads));
    for (uint32_t page = step.first_page; page < step.first_page + step.pages; ++page) {
      EXPECT_EQ(step.encoding, encodings[page]);
      for (uint32_t layer = 0; layer < step.layers.count; ++layer)
        EXPECT_TRUE(held.emplace(page, step.layers.first + layer).second);
    }
  }
  return held;
}

std::vector<uint32_t> Counts(const std::vector<BlockRange>& groups) {
  std::vector<uint32_t> counts;
  counts.reserve(groups.size());
  for (const BlockRange& group : groups) counts.push_back(group.count);
  return counts;
}

TEST(LayerGroups, DoubleFromOneLayerOn) {
  const auto groups = LayerGroups({2, 36}, 1, 7);
  EXPECT_THAT(Counts(groups), ElementsAre(1, 2, 4, 6, 6, 6, 6, 5));
  EXPECT_EQ(groups.front().first, 2u);
  EXPECT_EQ(groups.back().first, 33u);
  EXPECT_THAT(Counts(LayerGroups({0, 7}, 1, 1)), ElementsAre(1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(Counts(LayerGroups({0, 8}, 1, 100)), ElementsAre(1, 2, 4, 1));
  EXPECT_THAT(Counts(LayerGroups({0, 36}, 2, 7)), ElementsAre(2, 4, 6, 6, 6, 6, 6));
  EXPECT_THAT(Counts(LayerGroups({0, 5}, 7, 7)), ElementsAre(5));
}

TEST(LayerGroups, OneLayerIsOneGroup) { EXPECT_EQ(LayerGroups({5, 1}, 1, 4).size(), 1u); }

TEST(LayersOfPieceTest, CountsBytesOfPackedPages) {
  const Layouts layouts;
  const auto layers = [&](uint64_t bytes) {
    return LayersOfPiece(layouts.both(), layouts.whole(), bytes);
  };
  const uint64_t layer = layouts.packed.range_bytes({0, 1}, {0, 3});
  EXPECT_EQ(layers(0), 1u);
  EXPECT_EQ(layers(layer), 1u);
  EXPECT_EQ(layers(layer + 1), 2u);
  EXPECT_EQ(layers(1000 * layer), 6u);
}

TEST(GroupsThatFitTest, AreCutWhereAStageDoesNotTakeAPage) {
  const Layouts layouts;
  const uint64_t two_layers = 2 * LargestPiece(layouts.both());
  const auto groups = GroupsThatFit(layouts.both(), layouts.whole(), {0, 6}, 4, two_layers);
  EXPECT_THAT(Counts(groups), ElementsAre(1, 2, 2, 1));
  EXPECT_EQ(groups.back().first, 5u);
}

TEST(PlanByLayers, HoldsEveryBlockOnceWhateverTheStage) {
  const Layouts layouts;
  const std::vector<Encoding> encodings = {kWide,   kPacked, kPacked, kPacked, kPacked,
                                           kPacked, kWide,   kPacked, kWide,   kWide};
  const uint64_t least = LargestPiece(layouts.both());
  for (const TransferPart& part :
       {layouts.whole(), TransferPart{{1, 4}, {0, 3}}, TransferPart{{2, 3}, {1, 2}}}) {
    for (uint64_t stage : {least, least + 1, 3 * least, 100 * least}) {
      const auto groups = LayerGroups(part.layers, 1, 3);
      const auto steps = PlanByLayers(layouts.both(), encodings, part, groups, stage);
      EXPECT_EQ(Held(layouts, part, steps, encodings).size(), 10u * part.layers.count);
      for (const TransferStep& step : steps) EXPECT_LE(step.stage_bytes(), stage);
      // In the order of the groups: no step of a later one before the last of an earlier one.
      EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end(), [&](const auto& a, const auto& b) {
        const auto group_of = [&](const TransferStep& step) {
          return std::count_if(groups.begin(), groups.end(), [&](const BlockRange& group) {
            return group.first <= step.layers.first;
          });
        };
        return group_of(a) < group_of(b);
      }));
    }
  }
}

TEST(PlanByLayers, StepsAreOfAboutOneSize) {
  const Layouts layouts;
  const std::vector<Encoding> encodings(10, kPacked);
  const BlockRange group{0, 1};
  const uint64_t piece = layouts.packed.range_bytes(group, {0, 3});
  const auto steps =
      PlanByLayers(layouts.both(), encodings, layouts.whole(), {&group, 1}, 9 * piece);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].pages, 5u);
  EXPECT_EQ(steps[1].pages, 5u);
}

TEST(PlanByLayers, NoPagesNoSteps) {
  const Layouts layouts;
  const BlockRange group{0, 6};
  EXPECT_TRUE(PlanByLayers(layouts.both(), {}, layouts.whole(), {&group, 1}, 1 << 20).empty());
}

TEST(PlanByPages, WholePagesWhereTheyFit) {
  const Layouts layouts;
  const std::vector<Encoding> encodings = {kWide, kPacked, kPacked, kPacked, kWide};
  const auto steps = PlanByPages(layouts.both(), encodings, 2 * layouts.wide.page_bytes());
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[1].pages, 3u);
  EXPECT_EQ(steps[1].layers.count, 6u);
  EXPECT_EQ(Held(layouts, layouts.whole(), steps, encodings).size(), 30u);
}

TEST(PlanByPages, PagesAreCutWhereTheyDoNotFit) {
  const Layouts layouts;
  const std::vector<Encoding> encodings = {kWide, kPacked, kWide};
  const uint64_t stage = LargestPiece(layouts.both());
  const auto steps = PlanByPages(layouts.both(), encodings, stage);
  EXPECT_EQ(Held(layouts, layouts.whole(), steps, encodings).size(), 18u);
  uint32_t page = 0;
  for (const TransferStep& step : steps) {
    EXPECT_LE(step.stage_bytes(), stage);
    EXPECT_GE(step.first_page, page);  // one page after another
    page = step.first_page;
  }
}

TEST(LargestPieceTest, IsALayerOfAWidePage) {
  const Layouts layouts;
  EXPECT_EQ(LargestPiece(layouts.both()), layouts.wide.range_bytes({0, 1}, {0, 3}));
}

TEST(CheckPartTest, SaysWhatLiesOutside) {
  const Layouts layouts;
  EXPECT_OK(CheckPart({{5, 1}, {0, 3}}, layouts.geometry));
  EXPECT_THAT(CheckPart({{5, 2}, {0, 3}}, layouts.geometry),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layers 5 + 2")));
  EXPECT_THAT(CheckPart({{0, 6}, {3, 1}}, layouts.geometry),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("heads 3 + 1")));
  EXPECT_THAT(CheckPart({{0, 0}, {0, 3}}, layouts.geometry),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layers 0 + 0")));
}

TEST(FirstMarkedTest, NamesTheFirstBlockOfEachPage) {
  const BlockRange heads{1, 2};
  const std::vector<StepWords> steps = {
      {{.first_page = 0, .pages = 2, .layers = {0, 1}}, 0},
      {{.first_page = 2, .pages = 1, .layers = {0, 1}}, 4},
      {{.first_page = 0, .pages = 3, .layers = {1, 2}}, 6},
  };
  std::vector<uint32_t> words(18, 0);
  words[2] = 1;   // page 1, layer 0, first head
  words[5] = 2;   // page 2: another bit
  words[11] = 3;  // page 1 again, later
  words[16] = 1;  // page 2, layer 2, first head
  const auto marked = FirstMarked(steps, words, heads, 3, /*mask=*/1);
  EXPECT_FALSE(marked[0]);
  ASSERT_TRUE(marked[1] && marked[2]);
  EXPECT_EQ(std::make_pair(marked[1]->layer, marked[1]->head), std::make_pair(0u, 1u));
  EXPECT_EQ(std::make_pair(marked[2]->layer, marked[2]->head), std::make_pair(2u, 1u));
}

}  // namespace
}  // namespace oscarkv::client
