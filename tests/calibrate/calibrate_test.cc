// From a dump to a transform set.
#include "kernels/calibrate/calibrate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>

#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include <gtest/gtest.h>

#include "kernels/calibrate/fit.h"
#include "kernels/calibrate/moments.h"
#include "tests/calibrate/synthetic_dump.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::calibrate {
namespace {

using ::oscarkv::testing::StatusIs;
using testing::Activations;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::MakeActivations;
using testing::WriteLayer;

constexpr uint32_t kTokens = 1200;

std::vector<LayerDump> OpenAll(const std::vector<std::string>& paths) {
  auto dump = OpenDump(paths);
  EXPECT_OK(dump);
  return *std::move(dump);
}

// Two layers of three sequences of 400 tokens.
std::vector<LayerDump> TwoLayers() {
  return OpenAll(
      {WriteLayer("layer_0", MakeActivations(kTokens, 4, 2, 32, 32, 21), {400, 400, 400}),
       WriteLayer("layer_1", MakeActivations(kTokens, 4, 2, 32, 32, 22), {400, 400, 400})});
}

CalibrateOptions Options(Method method = Method::kBest) {
  CalibrateOptions options;
  options.method = method;
  options.score.recent_tokens = 64;
  return options;
}

Calibration Fitted(const std::vector<LayerDump>& dump, const CalibrateOptions& options) {
  auto calibration = Calibrate(dump, options, [](size_t, size_t) {});
  EXPECT_OK(calibration);
  return *std::move(calibration);
}

const Score& ScoreOf(const std::vector<Score>& scores, const std::string& method) {
  return *std::find_if(scores.begin(), scores.end(),
                       [&](const Score& score) { return score.method == method; });
}

TEST(CalibrateTest, KeepsTheCandidateOfLeastError) {
  const Calibration calibration = Fitted(TwoLayers(), Options());
  ASSERT_EQ(calibration.layers.size(), 2u);
  for (uint32_t layer = 0; layer < 2; ++layer) {
    const LayerReport& report = calibration.layers[layer];
    for (const auto& [scores, chosen] :
         {std::pair(&report.k, report.k_method), std::pair(&report.v, report.v_method)}) {
      EXPECT_EQ(scores->front().method, "naive");
      EXPECT_EQ(scores->size(), 9u);
      const auto best =
          std::min_element(scores->begin() + 1, scores->end(),
                           [](const Score& a, const Score& b) { return a.error < b.error; });
      EXPECT_EQ(best->method, chosen);
    }
    EXPECT_EQ(calibration.set.layer(layer).k_method, report.k_method);
    EXPECT_LT(report.error, report.naive_error);
    EXPECT_LT(ScoreOf(report.k, "balanced+offset").error,
              ScoreOf(report.k, "hadamard+offset").error);
  }
}

TEST(CalibrateTest, ClipRatiosOfTheSetAreThoseThatWereScored) {
  const Calibration calibration = Fitted(TwoLayers(), Options());
  for (uint32_t layer = 0; layer < 2; ++layer) {
    const Score& k = ScoreOf(calibration.layers[layer].k, calibration.layers[layer].k_method);
    for (uint32_t head = 0; head < 2; ++head)
      EXPECT_EQ(calibration.set.k(layer, head).clip_ratio, k.clip_ratios[head]);
  }
}

TEST(CalibrateTest, FittedClipIsNotWorseThanNoneOrThePublishedOne) {
  const std::vector<LayerDump> dump = TwoLayers();
  const Calibration free = Fitted(dump, Options(Method::kHadamard));
  for (const float ratio : {0.0f, 0.96f}) {
    CalibrateOptions options = Options(Method::kHadamard);
    options.k_clip = options.v_clip = ratio;
    const Calibration fixed = Fitted(dump, options);
    for (size_t layer = 0; layer < 2; ++layer) {
      EXPECT_LE(free.layers[layer].k[1].error, fixed.layers[layer].k[1].error);
      EXPECT_LE(free.layers[layer].v[1].error, fixed.layers[layer].v[1].error);
    }
  }
}

TEST(CalibrateTest, PublishedMethodIsTheRotationOfTheLayersMoments) {
  const std::vector<LayerDump> dump = TwoLayers();
  CalibrateOptions options = Options(Method::kOscar);
  options.k_clip = 0.96f;
  options.v_clip = 0.92f;
  const Calibration calibration = Fitted(dump, options);
  const Split split = SplitSequences(dump[1].sequences(), {});
  const auto moments = AccumulateMoments(dump[1], split.fitted, 64, 64);
  ASSERT_OK(moments);
  const Eigen::RowVectorXd none = Eigen::RowVectorXd::Zero(32);
  const SideTransform k = ToSideTransform(
      FitOscar((moments->heads[0].q_plain + moments->heads[1].q_plain) / 2), none, 0.96f);
  const SideTransform v = ToSideTransform(
      FitOscar((moments->heads[0].v_scored + moments->heads[1].v_scored) / 2), none, 0.92f);
  const LayerTransform& layer = calibration.set.layer(1);
  EXPECT_EQ(layer.k_method, "oscar");
  ASSERT_EQ(layer.k.size(), 1u);  // shared by the heads
  ASSERT_EQ(layer.v.size(), 1u);
  for (const auto& [found, expected] : {std::pair(&layer.k[0], &k), std::pair(&layer.v[0], &v)}) {
    EXPECT_EQ(found->clip_ratio, expected->clip_ratio);
    EXPECT_THAT(found->offset, Each(0.0f));
    // Up to the sign of each eigenvector nothing is free; the solver is the same, so not even that.
    EXPECT_EQ(found->forward, expected->forward);
    EXPECT_EQ(found->inverse, expected->inverse);
  }
}

TEST(CalibrateTest, NumberOfThreadsChangesNothing) {
  const std::vector<LayerDump> dump = TwoLayers();
  CalibrateOptions options = Options();
  options.threads = 1;
  const std::string one = ReportJson(Fitted(dump, options), options);
  options.threads = 3;
  EXPECT_EQ(ReportJson(Fitted(dump, options), options), one);
}

TEST(CalibrateTest, TellsItsProgress) {
  std::set<size_t> seen;
  EXPECT_OK(Calibrate(TwoLayers(), Options(Method::kHadamard), [&](size_t done, size_t all) {
              EXPECT_EQ(all, 2u);
              seen.insert(done);
            }).status());
  EXPECT_THAT(seen, ElementsAre(1, 2));
}

// With a mean beyond what fp16 scales reach only the candidates that subtract it can be read back.
TEST(CalibrateTest, CandidatesThatCannotBeHeldAreNeverChosen) {
  Activations layer = MakeActivations(800, 1, 1, 16, 16, 30);
  layer.k[0].col(3).array() += 1e6f;
  layer.q[0].col(3).setZero();
  const std::vector<LayerDump> dump = OpenAll({WriteLayer("layer_0_range", layer, {400, 400})});
  for (const std::optional<float> clip : {std::optional<float>(), std::optional<float>(0.0f)}) {
    CalibrateOptions options = Options();
    options.k_clip = clip;
    const LayerReport report = Fitted(dump, options).layers[0];
    EXPECT_TRUE(std::isinf(ScoreOf(report.k, "naive").error));
    EXPECT_TRUE(std::isinf(ScoreOf(report.k, "hadamard").error));
    EXPECT_THAT(report.k_method, HasSubstr("+offset"));
    EXPECT_LT(report.error, 1.0);
    EXPECT_TRUE(std::isinf(report.naive_error));
  }
}

TEST(CalibrateTest, HeadDimsOfKAndVMayDiffer) {
  const Calibration calibration = Fitted(
      OpenAll({WriteLayer("layer_0_dims", MakeActivations(900, 3, 1, 48, 16, 23), {450, 450})}),
      Options());
  EXPECT_EQ(calibration.set.k_head_dim(), 48u);
  EXPECT_EQ(calibration.set.v_head_dim(), 16u);
  EXPECT_LT(calibration.layers[0].error, calibration.layers[0].naive_error);
}

// The refusals name the layer.

absl::Status Refusal(const std::vector<LayerDump>& dump) {
  return Calibrate(dump, Options(), [](size_t, size_t) {}).status();
}

TEST(CalibrateTest, RefusesTooFewSamples) {
  const std::vector<LayerDump> dump =
      OpenAll({WriteLayer("layer_0_few", MakeActivations(kTokens, 2, 1, 64, 64, 24)),
               WriteLayer("layer_1_few", MakeActivations(600, 2, 1, 64, 64, 25), {300, 300})});
  EXPECT_THAT(Refusal(dump),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("layer 1"), HasSubstr("236 tokens"), HasSubstr("256"))));
}

TEST(CalibrateTest, RefusesValuesThatAreNotFiniteFittedOrHeldBack) {
  for (const Eigen::Index token : {100, 1100}) {
    Activations damaged = MakeActivations(kTokens, 4, 2, 32, 32, 26);
    damaged.k[1](token, 0) = std::numeric_limits<float>::quiet_NaN();
    const std::vector<LayerDump> dump =
        OpenAll({WriteLayer("layer_0_good", MakeActivations(kTokens, 4, 2, 32, 32, 27)),
                 WriteLayer("layer_1_nan", damaged)});
    EXPECT_THAT(Refusal(dump),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("layer 1, tensor k, head 1, token"), HasSubstr("NaN"))));
  }
}

TEST(CalibrateTest, RefusesLayersOfMixedShapes) {
  const std::string first = WriteLayer("layer_0_mixed", MakeActivations(500, 4, 2, 32, 32, 28));
  const std::string other = WriteLayer("layer_1_mixed", MakeActivations(500, 4, 4, 32, 32, 29));
  EXPECT_THAT(OpenDump({first, other}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1")));
  EXPECT_THAT(OpenDump({other}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 0 is missing")));
  EXPECT_THAT(OpenDump({}).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Refusal({}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(WarningsTest, NameLayersAndWhatToDo) {
  Calibration calibration = Fitted(TwoLayers(), Options(Method::kHadamard));
  calibration.layers[0].error = 0.01;
  calibration.layers[1].error = 0.02;
  for (LayerReport& layer : calibration.layers) layer.naive_error = 0.5;
  EXPECT_THAT(Warnings(calibration, Options()), IsEmpty());

  calibration.layers[1].error = 0.3;
  EXPECT_THAT(Warnings(calibration, Options()),
              ElementsAre(AllOf(HasSubstr("layers 1:"), HasSubstr("--k-bits 4"),
                                HasSubstr("--recent-tokens"))));
  CalibrateOptions four = Options();
  four.k_bits = 4;
  EXPECT_THAT(Warnings(calibration, four), ElementsAre(::testing::Not(HasSubstr("--k-bits"))));

  calibration.layers[1].error = std::numeric_limits<double>::quiet_NaN();
  calibration.layers[0].k_condition = 20.0;
  EXPECT_THAT(Warnings(calibration, Options()),
              ElementsAre(HasSubstr("layers 1"), HasSubstr("no better than naive"),
                          HasSubstr("condition numbers above 15 in layers 0")));
}

TEST(WarningsTest, NameWhatTheDumpLacks) {
  CalibrateOptions options = Options(Method::kHadamard);
  options.score.recent_tokens = 256;
  Calibration calibration = Fitted(TwoLayers(), options);
  for (LayerReport& layer : calibration.layers) layer.error = 0.01;
  EXPECT_EQ(calibration.layers[0].scored_recent_tokens, 168u);
  EXPECT_THAT(Warnings(calibration, options),
              ElementsAre(AllOf(HasSubstr("too short for a recent window of 256"),
                                HasSubstr("--recent-tokens 168"))));
  calibration.layers[1].kv_samples = 16 * 32 - 1;
  EXPECT_THAT(
      Warnings(calibration, Options()),
      ElementsAre(AllOf(HasSubstr("layers 1:"), HasSubstr("dump several thousand tokens"))));
}

TEST(ReportTest, IsJsonWithEveryScore) {
  CalibrateOptions options = Options(Method::kOscar);
  options.model = "a model";
  const Calibration calibration = Fitted(TwoLayers(), options);
  const auto report = nlohmann::json::parse(ReportJson(calibration, options));
  EXPECT_EQ(report["model"], "a model");
  EXPECT_EQ(report["method"], "oscar");
  ASSERT_EQ(report["layers"].size(), 2u);
  EXPECT_EQ(report["layers"][1]["k_scores"][1]["error"], calibration.layers[1].k[1].error);
  EXPECT_EQ(report["layers"][0]["q_spectrum"].size(), 32u);
  EXPECT_TRUE(report["warnings"].is_array());
}

}  // namespace
}  // namespace oscarkv::calibrate
