// The replay of traces, on a small one: the optimum is the optimum, and no policy passes it.
#include "tests/bench/trace_replay.h"

#include <fstream>
#include <string>

#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::bench {
namespace {

std::string TinyPath() { return OSCARKV_TINY_TRACE; }

std::string Write(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/trace.jsonl";
  std::ofstream(path) << text;
  return path;
}

TEST(TraceTest, ReadsRequestsAndNumbersBlocks) {
  const auto trace = ReadTrace(
      Write(R"({"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [7, 9]})"
            "\n"
            R"({"timestamp": 1500, "input_length": 512, "output_length": 6, "hash_ids": [7]})"));
  ASSERT_OK(trace);
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].blocks, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ((*trace)[1].blocks, (std::vector<uint32_t>{0}));
  EXPECT_EQ((*trace)[1].time_s, 1.5);
  EXPECT_EQ(CountBlocks(*trace), 2u);
}

TEST(TraceTest, SaysWhichLineIsWrong) {
  const std::string good =
      R"({"timestamp": 5, "input_length": 512, "output_length": 5, "hash_ids": [1]})"
      "\n";
  for (const char* bad :
       {"no JSON", R"({"timestamp": 5})",
        R"({"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": []})",
        R"({"timestamp": 4, "input_length": 1, "output_length": 1, "hash_ids": [1]})",
        R"({"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": [2, 1]})"}) {
    const auto trace = ReadTrace(Write(good + bad));
    ASSERT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(trace.status().message().find(":2: "), std::string::npos) << trace.status();
  }
  EXPECT_EQ(ReadTrace("/nowhere").status().code(), absl::StatusCode::kNotFound);
}

TEST(TraceReplayTest, OptimumOfASmallCaseIsByHand) {
  // Three blocks a, b, c in the order a b c a b: with room for one, one hit; for two, two.
  const std::vector<TraceRequest> trace = {
      {.blocks = {0}}, {.blocks = {1}}, {.blocks = {2}}, {.blocks = {0}}, {.blocks = {1}}};
  EXPECT_EQ(ReplayOptimum(trace, 1).whole.hits, 1);
  EXPECT_EQ(ReplayOptimum(trace, 2).whole.hits, 2);
  EXPECT_EQ(ReplayOptimum(trace, 2).whole.blocks, 5);
}

TEST(TraceReplayTest, PoliciesStayBelowTheOptimumAndHitEverythingWithRoom) {
  const auto trace = ReadTrace(TinyPath());
  ASSERT_OK(trace);
  const uint64_t blocks = CountBlocks(*trace);
  const double all = ReplayOptimum(*trace, blocks).whole.hits;
  for (const char* policy : {"lru", "learnt"}) {
    double before = 0;
    for (const uint64_t pages : {blocks / 16, blocks / 4, blocks}) {
      const auto result = Replay(*trace, {.policy = policy, .capacity_pages = pages});
      ASSERT_OK(result);
      EXPECT_LE(result->whole.hits, ReplayOptimum(*trace, pages).whole.hits) << policy;
      EXPECT_GE(result->whole.hits, before) << policy;
      before = result->whole.hits;
    }
    EXPECT_EQ(before, all) << policy;
  }
}

TEST(TraceReplayTest, PagesOfTheServersSizeHitAsWell) {
  const auto trace = ReadTrace(TinyPath());
  ASSERT_OK(trace);
  const uint64_t pages = CountBlocks(*trace) * 8;
  const auto result =
      Replay(*trace, {.policy = "learnt", .capacity_pages = pages, .page_tokens = 64});
  ASSERT_OK(result);
  EXPECT_GT(result->whole.hits, 0.8 * ReplayOptimum(*trace, pages).whole.hits);
}

TEST(TraceReplayTest, PerfectHintsHelp) {
  const auto trace = ReadTrace(TinyPath());
  ASSERT_OK(trace);
  ReplayOptions options{.policy = "learnt", .capacity_pages = CountBlocks(*trace) / 8};
  const auto without = Replay(*trace, options);
  options.hints = true;
  const auto with = Replay(*trace, options);
  ASSERT_OK(without);
  ASSERT_OK(with);
  EXPECT_GT(with->whole.hits, without->whole.hits);
}

// At the same bytes: seven pages where one was, as soon as nothing but re-encoding is needed for
// it.
TEST(TraceReplayTest, TheLadderTurnsBytesIntoHits) {
  const auto trace = *ReadTrace(OSCARKV_TINY_TRACE);
  ReplayOptions options{
      .policy = "lru", .capacity_pages = CountBlocks(trace) / 4, .ladder = "kept"};
  const ReplayResult kept = *Replay(trace, options);
  EXPECT_EQ(kept.reencoded_pages, 0u);
  EXPECT_GT(kept.evicted_pages, 0u);
  for (const char* mode : {"until_pressure", "tail", "never"}) {
    options.ladder = mode;
    const ReplayResult laddered = *Replay(trace, options);
    EXPECT_GT(laddered.reencoded_pages, 0u) << mode;
    EXPECT_EQ(laddered.evicted_pages, 0u) << mode;
    EXPECT_GT(laddered.whole.hits, kept.whole.hits) << mode;
  }
  options.ladder = "always";
  EXPECT_FALSE(Replay(trace, options).ok());
}

// Behind little memory, a disk with room for all hits what it was given.
TEST(TraceReplayTest, ADiskHitsWhatMemoryLetGo) {
  const auto trace = *ReadTrace(TinyPath());
  const uint64_t blocks = CountBlocks(trace);
  const double all = ReplayOptimum(trace, blocks).whole.hits;
  for (const char* policy : {"lru", "learnt"}) {
    ReplayOptions options{.policy = policy, .capacity_pages = blocks / 8, .disk_pages = blocks};
    const ReplayResult everything = *Replay(trace, options);
    EXPECT_GE(everything.whole.hits, 0.95 * all) << policy;
    EXPECT_GT(everything.whole.disk_hits, 0) << policy;
    options.admit = "worth";
    const ReplayResult worth = *Replay(trace, options);
    EXPECT_GT(worth.whole.disk_hits, 0) << policy;
    EXPECT_LT(worth.disk_written_pages, everything.disk_written_pages) << policy;
    options.admit = "some";
    EXPECT_FALSE(Replay(trace, options).ok());
  }
}

TEST(TraceReplayTest, RefusesWhatIsNone) {
  const std::vector<TraceRequest> trace = {{.blocks = {0}}};
  EXPECT_FALSE(Replay(trace, {.policy = "best", .capacity_pages = 4}).ok());
  EXPECT_FALSE(Replay(trace, {.policy = "lru", .capacity_pages = 4, .page_tokens = 100}).ok());
}

}  // namespace
}  // namespace oscarkv::bench
