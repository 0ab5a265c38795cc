// Attention over a sequence whose tokens lie in two forms: PACKED ones read in the transformed
// basis, with the query taken there, and WIDE ones read as they are; the two parts merged by their
// log-sum-exp. What an attention kernel over pages does, in plain loops.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kDim = 64;

// One query's attention to some tokens: the output, not yet divided by the sum of the weights.
struct Part {
  double most = -std::numeric_limits<double>::infinity();  // greatest logit
  double sum = 0.0;                                        // of exp(logit - most)
  std::vector<double> output = std::vector<double>(kDim);  // sum of exp(logit - most) v
};

Part Attend(const std::vector<double>& logits, const Rows& v) {
  Part part;
  for (double logit : logits) part.most = std::max(part.most, logit);
  for (size_t token = 0; token < logits.size(); ++token) {
    const double weight = std::exp(logits[token] - part.most);
    part.sum += weight;
    for (uint32_t i = 0; i < kDim; ++i)
      part.output[i] += weight * static_cast<double>(v.row(token)[i]);
  }
  return part;
}

Part Merge(const Part& a, const Part& b) {
  if (a.sum == 0.0) return b;
  if (b.sum == 0.0) return a;
  Part merged;
  merged.most = std::max(a.most, b.most);
  const double of_a = std::exp(a.most - merged.most);
  const double of_b = std::exp(b.most - merged.most);
  merged.sum = of_a * a.sum + of_b * b.sum;
  for (uint32_t i = 0; i < kDim; ++i) merged.output[i] = of_a * a.output[i] + of_b * b.output[i];
  return merged;
}

std::vector<double> Output(const Part& part) {
  std::vector<double> output = part.output;
  for (double& value : output) value = part.sum == 0.0 ? 0.0 : value / part.sum;
  return output;
}

std::vector<double> Logits(const std::vector<double>& q, const Rows& k, double constant) {
  std::vector<double> logits;
  for (size_t token = 0; token < k.count(); ++token) {
    double sum = constant;
    for (uint32_t i = 0; i < kDim; ++i) sum += q[i] * static_cast<double>(k.row(token)[i]);
    logits.push_back(sum);
  }
  return logits;
}

Rows Slice(const Rows& rows, size_t first, size_t end) {
  return {kDim, std::vector<float>(rows.values.begin() + static_cast<std::ptrdiff_t>(first * kDim),
                                   rows.values.begin() + static_cast<std::ptrdiff_t>(end * kDim))};
}

struct Sequence {
  Encoded k;
  Encoded v;
  Rows k_model;  // decoded to the model's basis
  Rows v_model;
  Rows k_transformed;  // decoded as stored
};

class SplitAttentionTest : public ::testing::TestWithParam<const RowKernels*> {
 protected:
  static constexpr size_t kTokens = 100;
  // Kernels with integer products decode within 2^-9 of a row's greatest magnitude, the others in
  // fp32.
  static double bound() { return GetParam()->name().starts_with("cpu/AVX") ? 0.03 : 1e-5; }

  Sequence MakeSequence() const {
    const auto decode = [&](const Encoded& encoded, const SideTransform* transform) {
      return FromBytes(Decode(*GetParam(), format_, transform, DType::kFp32, encoded), kDim,
                       DType::kFp32);
    };
    Sequence s;
    s.k = Encode(*GetParam(), format_, &transform_, DType::kFp32,
                 ToBytes(KeyLikeRows(kDim, kTokens, 31), DType::kFp32));
    s.v = Encode(*GetParam(), format_, &transform_, DType::kFp32,
                 ToBytes(GaussianRows(kDim, kTokens, 32), DType::kFp32));
    s.k_model = decode(s.k, &transform_);
    s.v_model = decode(s.v, &transform_);
    s.k_transformed = decode(s.k, nullptr);
    return s;
  }

  // q T^-T, and q . m: with them q . x = (q T^-T) . y + q . m.
  std::pair<std::vector<double>, double> Transformed(const std::vector<double>& q) const {
    std::vector<double> rotated(kDim);
    double constant = 0.0;
    for (uint32_t j = 0; j < kDim; ++j) {
      constant += q[j] * static_cast<double>(transform_.offset[j]);
      for (uint32_t i = 0; i < kDim; ++i)
        rotated[i] += q[j] * static_cast<double>(transform_.inverse[i * kDim + j]);
    }
    return {rotated, constant};
  }

  const RowFormat format_ = Format(kDim, 2, 0, ParamsDType::kFp16, 0.9f);
  const SideTransform transform_ = RandomBalanced(kDim, 8.0, 30);
};

TEST_P(SplitAttentionTest, AnySplitEqualsOnePass) {
  const Sequence s = MakeSequence();
  for (double strength : {0.02, 0.2, 30.0}) {  // logits of some units, tens, and thousands
    const Rows queries = GaussianRows(kDim, 3, 33);
    for (size_t query = 0; query < 3; ++query) {
      std::vector<double> q;
      for (float value : queries.row(query)) q.push_back(strength * static_cast<double>(value));
      const auto [rotated, constant] = Transformed(q);
      const std::vector<double> once = Output(Attend(Logits(q, s.k_model, 0.0), s.v_model));
      for (size_t split : {size_t{0}, size_t{1}, size_t{50}, size_t{99}, kTokens}) {
        const Part packed = Attend(Logits(rotated, Slice(s.k_transformed, 0, split), constant),
                                   Slice(s.v_model, 0, split));
        const Part wide = Attend(Logits(q, Slice(s.k_model, split, kTokens), 0.0),
                                 Slice(s.v_model, split, kTokens));
        const std::vector<double> merged = Output(Merge(packed, wide));
        for (uint32_t i = 0; i < kDim; ++i) {
          ASSERT_TRUE(std::isfinite(merged[i]));
          // Logits in thousands magnify what the two bases differ by in fp32.
          if (strength < 1.0) {
            ASSERT_NEAR(merged[i], once[i], bound()) << "split " << split;
          }
        }
      }
    }
  }
}

TEST_P(SplitAttentionTest, NothingAtAllGivesZero) {
  const Part empty = Attend({}, Rows{kDim, {}});
  EXPECT_EQ(Output(Merge(empty, empty)), std::vector<double>(kDim, 0.0));
}

INSTANTIATE_TEST_SUITE_P(AllKernels, SplitAttentionTest, ::testing::ValuesIn(AllKernels()),
                         [](const auto& kernels) { return TestName(*kernels.param); });

}  // namespace
}  // namespace oscarkv::testing
