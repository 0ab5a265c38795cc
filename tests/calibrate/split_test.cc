// Which tokens are held back.
#include "kernels/calibrate/split.h"

#include <gtest/gtest.h>

namespace oscarkv::calibrate {
namespace {

uint64_t Tokens(const std::vector<Sequence>& sequences) {
  uint64_t tokens = 0;
  for (const Sequence& sequence : sequences) tokens += sequence.tokens;
  return tokens;
}

TEST(SplitTest, OfASingleSequenceTheEndIsHeldBack) {
  const Split split = SplitSequences({{0, 100, 10000}}, {.held_back_share = 0.1});
  ASSERT_EQ(split.fitted.size(), 1u);
  ASSERT_EQ(split.held_back.size(), 1u);
  EXPECT_EQ(split.fitted[0].first_token, 100u);
  EXPECT_EQ(split.fitted[0].tokens, 9000u);
  EXPECT_EQ(split.held_back[0].first, 9000u);
  EXPECT_EQ(split.held_back[0].tokens, 1000u);
  EXPECT_EQ(split.held_back[0].sequence.tokens, 10000u);  // with its sinks
}

TEST(SplitTest, AShortSingleSequenceGivesHalfAndNeverItsSinks) {
  const Split split = SplitSequences({{0, 0, 600}}, {.held_back_share = 0.1});
  EXPECT_EQ(split.fitted[0].tokens, 300u);
  EXPECT_EQ(split.held_back[0].first, 300u);
  const Split tiny = SplitSequences({{0, 0, 100}}, {.sink_tokens = 64});
  EXPECT_EQ(tiny.held_back[0].first, 64u);
  EXPECT_EQ(tiny.held_back[0].tokens, 36u);
}

TEST(SplitTest, OfSeveralTheLongestIsHeldBackWhole) {
  const Split split = SplitSequences({{0, 0, 500}, {0, 500, 900}, {1, 0, 900}, {1, 900, 400}},
                                     {.held_back_share = 0.2});
  ASSERT_EQ(split.held_back.size(), 1u);
  EXPECT_EQ(split.held_back[0].sequence.file, 1u);
  EXPECT_EQ(split.held_back[0].sequence.tokens, 900u);
  EXPECT_EQ(split.held_back[0].first, 64u);
  EXPECT_EQ(split.held_back[0].tokens, 836u);
  EXPECT_EQ(split.fitted.size(), 3u);
}

TEST(SplitTest, TwoAreEnoughAndOneIsAlwaysFittedOn) {
  const std::vector<Sequence> many(10, Sequence{0, 0, 1000});
  const Split split = SplitSequences(many, {.held_back_share = 0.8});
  EXPECT_EQ(split.held_back.size(), 2u);
  EXPECT_EQ(Tokens(split.fitted), 8000u);
  EXPECT_EQ(SplitSequences({many[0], many[1]}, {.held_back_share = 0.8}).fitted.size(), 1u);
}

TEST(SplitTest, ContextIsBounded) {
  const Split split = SplitSequences({{0, 0, 50000}, {0, 50000, 40000}}, {.context_tokens = 1536});
  EXPECT_EQ(split.held_back[0].tokens, 1536u);
}

}  // namespace
}  // namespace oscarkv::calibrate
