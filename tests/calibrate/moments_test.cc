// Streamed moments against sums written down directly.
#include "kernels/calibrate/moments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include <gtest/gtest.h>

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

void ExpectNear(const MatrixXd& found, const MatrixXd& expected, double tolerance) {
  ASSERT_EQ(found.rows(), expected.rows());
  ASSERT_EQ(found.cols(), expected.cols());
  EXPECT_LE((found - expected).cwiseAbs().maxCoeff(), tolerance * expected.cwiseAbs().maxCoeff());
}

LayerMoments Accumulate(const LayerDump& dump, uint64_t sinks, uint64_t recent) {
  auto moments = AccumulateMoments(dump, dump.sequences(), sinks, recent);
  EXPECT_OK(moments);
  return *std::move(moments);
}

// Weighted by w: sum w x'x / sum w and sum w x / sum w.
struct Weighted {
  MatrixXd second;
  RowVectorXd sum;
  double weight = 0.0;

  explicit Weighted(Index dim) : second(MatrixXd::Zero(dim, dim)), sum(RowVectorXd::Zero(dim)) {}
  void Add(const RowVectorXd& x, double w) {
    second += w * x.transpose() * x;
    sum += w * x;
    weight += w;
  }
};

// The moments that need no attention, token by token.
void ExpectPlainMoments(const LayerMoments& found, const Activations& layer) {
  const size_t ratio = layer.q.size() / layer.k.size();
  for (size_t head = 0; head < layer.k.size(); ++head) {
    Weighted q(layer.q[0].cols());
    for (size_t i = head * ratio; i < (head + 1) * ratio; ++i) {
      for (Index t = 0; t < layer.q[i].rows(); ++t) q.Add(layer.q[i].row(t).cast<double>(), 1.0);
    }
    const MatrixXd q_moment = q.second / q.weight;
    Weighted v(layer.v[0].cols());
    for (Index t = 0; t < layer.k[head].rows(); ++t) {
      const RowVectorXd k = layer.k[head].row(t).cast<double>();
      v.Add(layer.v[head].row(t).cast<double>(), (k * q_moment * k.transpose())(0));
    }
    ExpectNear(found.heads[head].q_plain, q_moment, 1e-10);
    ExpectNear(found.heads[head].v_scored, v.second / v.weight, 1e-10);
  }
}

// Softmax attention over all tokens before each eighth query; what falls on packed keys weighs.
void ExpectAttendedMoments(const HeadMoments& found, const Activations& layer, size_t head,
                           Index sinks, Index recent) {
  const size_t ratio = layer.q.size() / layer.k.size();
  const MatrixXd keys = layer.k[head].cast<double>();
  const MatrixXd values = layer.v[head].cast<double>();
  Weighted q(keys.cols()), k(keys.cols()), v(values.cols());
  for (size_t i = head * ratio; i < (head + 1) * ratio; ++i) {
    for (Index at = sinks + recent; at < keys.rows(); at += 8) {
      const RowVectorXd query = layer.q[i].row(at).cast<double>();
      Eigen::VectorXd p =
          keys.topRows(at + 1) * query.transpose() / std::sqrt(static_cast<double>(keys.cols()));
      p = (p.array() - p.maxCoeff()).exp();
      p /= p.sum();
      double on_packed = 0.0;
      for (Index t = sinks; t <= at - recent; ++t) {
        k.Add(keys.row(t), p(t));
        v.Add(values.row(t), p(t) * p(t));
        on_packed += p(t);
      }
      q.Add(query, on_packed);
    }
  }
  ExpectNear(found.q, q.second / q.weight, 1e-4);
  ExpectNear(found.k, k.second / k.weight, 1e-4);
  ExpectNear(found.k_mean, k.sum / k.weight, 1e-4);
  ExpectNear(found.v, v.second / v.weight, 1e-4);
  ExpectNear(found.v_mean, v.sum / v.weight, 1e-4);
}

TEST(MomentsTest, AreThoseOfADirectComputation) {
  const Activations layer = MakeActivations(500, 4, 2, 32, 16, 1);
  const LayerDump dump = OpenLayer("direct", layer);
  const LayerMoments moments = Accumulate(dump, 20, 50);
  EXPECT_EQ(moments.tokens, 500u);
  EXPECT_EQ(moments.kv_samples, 480u);
  ASSERT_EQ(moments.heads.size(), 2u);
  ExpectPlainMoments(moments, layer);
  for (size_t head = 0; head < 2; ++head)
    ExpectAttendedMoments(moments.heads[head], layer, head, 20, 50);
}

TEST(MomentsTest, WithoutSinksAndRecentWindow) {
  const Activations layer = MakeActivations(300, 1, 1, 16, 16, 2);
  const LayerDump dump = OpenLayer("no_windows", layer);
  ExpectAttendedMoments(Accumulate(dump, 0, 0).heads[0], layer, 0, 0, 0);
}

TEST(MomentsTest, LongSequencesAreReadInWindows) {
  const Activations layer = MakeActivations(4500, 2, 1, 16, 32, 3);
  const LayerDump dump = OpenLayer("long", layer);
  const LayerMoments moments = Accumulate(dump, 64, 256);
  EXPECT_EQ(moments.tokens, 4500u);
  EXPECT_EQ(moments.kv_samples, 4436u);
  ExpectPlainMoments(moments, layer);
}

// What is known of a sequence does not depend on the file it is in.
TEST(MomentsTest, SequencesInOneFileOrInSeveral) {
  const Activations layer = MakeActivations(900, 2, 1, 32, 32, 4);
  const LayerDump one = OpenLayer("one_file", layer, {400, 200, 300});
  const auto several =
      LayerDump::Open(0, {testing::WriteLayer("several_0", layer.Slice(0, 400)),
                          testing::WriteLayer("several_1", layer.Slice(400, 500), {200, 300})});
  ASSERT_OK(several);
  const LayerMoments a = Accumulate(one, 64, 32);
  const LayerMoments b = Accumulate(*several, 64, 32);
  EXPECT_EQ(a.kv_samples, 900u - 3 * 64);
  EXPECT_EQ(a.kv_samples, b.kv_samples);
  EXPECT_EQ(a.heads[0].q, b.heads[0].q);
  EXPECT_EQ(a.heads[0].k, b.heads[0].k);
  EXPECT_EQ(a.heads[0].v_scored, b.heads[0].v_scored);
  // And attention never crosses from one sequence to the next.
  const LayerMoments whole = Accumulate(OpenLayer("whole", layer), 64, 32);
  EXPECT_NE(a.heads[0].k, whole.heads[0].k);
}

// Sequences that end within the recent window have no packed keys: every token then counts the
// same, those behind the sinks.
TEST(MomentsTest, ShortSequencesCountEqually) {
  const Activations layer = MakeActivations(200, 1, 1, 16, 16, 5);
  const LayerMoments moments = Accumulate(OpenLayer("short", layer), 50, 256);
  Weighted k(16);
  for (Index t = 50; t < 200; ++t) k.Add(layer.k[0].row(t).cast<double>(), 1.0);
  ExpectNear(moments.heads[0].k, k.second / k.weight, 1e-10);
  ExpectNear(moments.heads[0].k_mean, k.sum / k.weight, 1e-10);
  EXPECT_EQ(moments.heads[0].q, moments.heads[0].q_plain);
}

TEST(MomentsTest, NameWhatIsNotFinite) {
  Activations layer = MakeActivations(3000, 2, 1, 16, 16, 6);
  layer.v[0](2500, 3) = std::numeric_limits<float>::infinity();
  const LayerDump dump = OpenLayer("infinite", layer);
  EXPECT_THAT(AccumulateMoments(dump, dump.sequences(), 64, 256).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer 0, tensor v, head 0, token 2500")));
}

}  // namespace
}  // namespace oscarkv::calibrate
