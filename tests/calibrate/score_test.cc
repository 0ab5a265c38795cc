// The scorer against attention written down directly.
#include "kernels/calibrate/score.h"

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include <gtest/gtest.h>

#include "kernels/calibrate/fit.h"
#include "tests/calibrate/synthetic_dump.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using ::oscarkv::testing::StatusIs;
using testing::Activations;
using ::testing::HasSubstr;
using testing::MakeActivations;
using testing::OpenLayer;
using testing::RandomMoment;

constexpr Index kSinks = 10, kRecent = 30, kTokens = 260, kFirst = 60;

// What one side of one head is read back as, in double; exact without a transform.
MatrixXd ReadBack(const RowMatrix& rows, const SideTransform* transform, float clip_ratio,
                  uint32_t bits) {
  if (transform == nullptr) return rows.cast<double>();
  const auto dim = static_cast<Index>(transform->dim);
  const RowMatrix coded =
      ThroughQuantizer(Transformed(rows, *transform), bits, 0, clip_ratio, ParamsDType::kFp16);
  const Eigen::Map<const RowMatrix> inverse(transform->inverse.data(), dim, dim);
  const Eigen::Map<const Eigen::RowVectorXf> offset(transform->offset.data(), dim);
  return (coded.cast<double>() * inverse.cast<double>()).rowwise() + offset.cast<double>();
}

// Relative error of attention's output over the scored positions, summed over `heads`, with packed
// tokens (behind the held-back part's start, before the recent window) read back.
struct Direct {
  const Activations& layer;
  uint32_t bits = 2;

  // The output of one query, over sinks and the held-back part up to `at`.
  RowVectorXd Output(size_t q_head, size_t kv_head, Index at, const MatrixXd& k_read,
                     const MatrixXd& v_read) const {
    const RowVectorXd query = layer.q[q_head].row(at).cast<double>();
    std::vector<std::pair<double, RowVectorXd>> seen;
    for (Index t = 0; t <= at; ++t) {
      if (t >= kSinks && t < kFirst) continue;
      const bool packed = t >= kFirst && t <= at - kRecent;
      const RowVectorXd k =
          packed ? RowVectorXd(k_read.row(t)) : RowVectorXd(layer.k[kv_head].row(t).cast<double>());
      const RowVectorXd v =
          packed ? RowVectorXd(v_read.row(t)) : RowVectorXd(layer.v[kv_head].row(t).cast<double>());
      seen.push_back({query.dot(k) / std::sqrt(static_cast<double>(query.size())), v});
    }
    double most = seen[0].first;
    for (const auto& [logit, v] : seen) most = std::max(most, logit);
    RowVectorXd output = RowVectorXd::Zero(layer.v[kv_head].cols());
    double sum = 0.0;
    for (const auto& [logit, v] : seen) {
      output += std::exp(logit - most) * v;
      sum += std::exp(logit - most);
    }
    return output / sum;
  }

  // sum |o' - o|^2 of `head`, or of all heads, over sum |o|^2 of all.
  double Error(const SideTransform* k, float k_clip, const SideTransform* v, float v_clip,
               int only_head) const {
    double difference = 0.0, norm = 0.0;
    const size_t ratio = layer.q.size() / layer.k.size();
    const Index part = kTokens - kFirst;
    const Index start = kRecent + (part - kRecent) / 4;
    const Index positions = std::min<Index>(32, part - start);
    for (size_t q_head = 0; q_head < layer.q.size(); ++q_head) {
      const size_t head = q_head / ratio;
      const MatrixXd k_read = ReadBack(layer.k[head], k, k_clip, bits);
      const MatrixXd v_read = ReadBack(layer.v[head], v, v_clip, bits);
      for (Index j = 0; j < positions; ++j) {
        const Index at = kFirst + start + j * (part - start) / positions;
        const RowVectorXd exact =
            Output(q_head, head, at, layer.k[head].cast<double>(), layer.v[head].cast<double>());
        norm += exact.squaredNorm();
        if (only_head >= 0 && static_cast<size_t>(only_head) != head) continue;
        difference += (Output(q_head, head, at, k_read, v_read) - exact).squaredNorm();
      }
    }
    return difference / norm;
  }
};

class LayerScorerTest : public ::testing::Test {
 protected:
  LayerScorerTest()
      : layer_(MakeActivations(kTokens, 4, 2, 32, 16, 9)), dump_(OpenLayer("score", layer_)) {}

  LayerScorer Scorer() const {
    ScoreOptions options;
    options.sink_tokens = kSinks;
    options.recent_tokens = kRecent;
    auto scorer = LayerScorer::Create(
        dump_, {{dump_.sequences()[0], kFirst, static_cast<uint64_t>(kTokens - kFirst)}}, options);
    EXPECT_OK(scorer);
    return *std::move(scorer);
  }

  // Far from orthogonal, with an offset: nothing may cancel by chance.
  static SideTransform Balanced(uint32_t dim, float clip_ratio) {
    const Eigen::RowVectorXd offset = Eigen::RowVectorXd::LinSpaced(dim, -1.0, 1.0);
    return ToSideTransform(FitBalanced(RandomMoment(dim, 1), RandomMoment(dim, 2), 10.0), offset,
                           clip_ratio);
  }

  const Activations layer_;
  const LayerDump dump_;
};

TEST_F(LayerScorerTest, KeyErrorsAreThoseOfAttention) {
  const SideTransform transform = Balanced(32, 0.0f);
  const float ratios[] = {0.0f, 0.9f, 0.8f};
  for (uint32_t head = 0; head < 2; ++head) {
    const std::vector<double> errors = Scorer().KErrors(head, transform, 2, ratios);
    for (size_t i = 0; i < 3; ++i) {
      const double expected =
          Direct{layer_}.Error(&transform, ratios[i], nullptr, 0.0f, static_cast<int>(head));
      EXPECT_NEAR(errors[i] / expected, 1.0, 1e-3);
      EXPECT_GT(expected, 1e-3);
    }
  }
}

TEST_F(LayerScorerTest, ValueErrorsAreThoseOfAttention) {
  const SideTransform transform = Balanced(16, 0.0f);
  const float ratios[] = {0.0f, 0.85f};
  for (uint32_t head = 0; head < 2; ++head) {
    const std::vector<double> errors = Scorer().VErrors(head, transform, 4, ratios);
    for (size_t i = 0; i < 2; ++i) {
      const double expected =
          Direct{layer_, 4}.Error(nullptr, 0.0f, &transform, ratios[i], static_cast<int>(head));
      EXPECT_NEAR(errors[i] / expected, 1.0, 1e-3);
    }
  }
}

TEST_F(LayerScorerTest, BothSidesTogether) {
  const SideTransform k = Balanced(32, 0.9f);
  const SideTransform v = Balanced(16, 0.85f);
  const double expected = Direct{layer_}.Error(&k, 0.9f, &v, 0.85f, -1);
  EXPECT_NEAR(Scorer().BothError({k}, 2, {v}, 2) / expected, 1.0, 1e-3);
  EXPECT_EQ(Scorer().BothError({k, k}, 2, {v, v}, 2), Scorer().BothError({k}, 2, {v}, 2));
}

TEST_F(LayerScorerTest, CountsEveryQueryHead) {
  EXPECT_EQ(Scorer().queries(), 4u * 32);
  EXPECT_EQ(Scorer().recent_tokens(), static_cast<uint64_t>(kRecent));
}

TEST_F(LayerScorerTest, ShortPartsAreScoredWithAShorterWindow) {
  ScoreOptions options;
  options.sink_tokens = kSinks;
  const auto scorer = LayerScorer::Create(dump_, {{dump_.sequences()[0], kFirst, 100}}, options);
  ASSERT_OK(scorer);
  EXPECT_EQ(scorer->recent_tokens(), 50u);
  EXPECT_THAT(
      LayerScorer::Create(dump_, {{dump_.sequences()[0], kFirst, 63}}, options).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 0: a held-back part has 63")));
}

// Rows of few levels survive the quantiser as they are: then nothing is wrong with the output.
TEST(ScoreTest, RowsThatTheQuantiserHoldsExactlyScoreZero) {
  Activations layer = MakeActivations(200, 2, 1, 16, 16, 10);
  for (RowMatrix* rows : {&layer.k[0], &layer.v[0]}) {
    *rows = rows->unaryExpr([](float x) { return std::clamp(std::round(x), 0.0f, 3.0f); });
    rows->col(0).setZero();
    rows->col(1).setConstant(3.0f);
  }
  const LayerDump dump = OpenLayer("levels", layer);
  const auto scorer = LayerScorer::Create(dump, {{dump.sequences()[0], 20, 180}},
                                          {.sink_tokens = 20, .recent_tokens = 40});
  ASSERT_OK(scorer);
  const MatrixXd one = MatrixXd::Identity(16, 16);
  const SideTransform same = ToSideTransform({one, one}, Eigen::RowVectorXd::Zero(16), 0.0f);
  EXPECT_LE(scorer->BothError({same}, 2, {same}, 2), 1e-10);
}

}  // namespace
}  // namespace oscarkv::calibrate
