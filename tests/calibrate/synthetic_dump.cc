#include "tests/calibrate/synthetic_dump.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include <gtest/gtest.h>

#include "kernels/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::calibrate::testing {
namespace {

// There until the program ends.
struct Folder {
  const std::string path = absl::StrCat(::testing::TempDir(), "/calibrate.", getpid());

  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
};

// [tokens, heads, dim]
std::vector<float> Interleaved(const std::vector<RowMatrix>& heads) {
  std::vector<float> values;
  for (Eigen::Index token = 0; token < heads[0].rows(); ++token) {
    for (const RowMatrix& head : heads) {
      const float* row = head.data() + token * head.cols();
      values.insert(values.end(), row, row + head.cols());
    }
  }
  return values;
}

std::vector<RowMatrix> MakeHeads(uint32_t tokens, uint32_t heads, uint32_t dim, float mean,
                                 uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<RowMatrix> made;
  for (uint32_t head = 0; head < heads; ++head) {
    RowMatrix rows = RandomRows(tokens, dim, seed * 100 + head);
    for (uint32_t channel = 0; channel < dim; ++channel) {
      rows.col(channel) *= std::exp(0.7f * normal(random));
      rows.col(channel).array() += mean * normal(random);
    }
    made.push_back(std::move(rows));
  }
  return made;
}

}  // namespace

Activations Activations::Slice(Eigen::Index first, Eigen::Index count) const {
  Activations slice;
  const auto cut = [&](const std::vector<RowMatrix>& heads, std::vector<RowMatrix>* into) {
    for (const RowMatrix& head : heads) into->push_back(head.middleRows(first, count));
  };
  cut(q, &slice.q);
  cut(k, &slice.k);
  cut(v, &slice.v);
  return slice;
}

Activations MakeActivations(uint32_t tokens, uint32_t q_heads, uint32_t kv_heads, uint32_t k_dim,
                            uint32_t v_dim, uint32_t seed) {
  return {MakeHeads(tokens, q_heads, k_dim, 0.2f, 3 * seed + 1),
          MakeHeads(tokens, kv_heads, k_dim, 2.0f, 3 * seed + 2),
          MakeHeads(tokens, kv_heads, v_dim, 0.5f, 3 * seed + 3)};
}

std::string WriteLayer(const std::string& name, const Activations& layer,
                       const std::vector<int64_t>& lengths) {
  static const Folder folder;
  const std::string path = absl::StrCat(folder.path, "/", name, ".safetensors");
  const std::vector<RowMatrix>* sides[] = {&layer.q, &layer.k, &layer.v};
  std::vector<std::vector<float>> values;
  for (const auto* side : sides) values.push_back(Interleaved(*side));
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < 3; ++i) {
    tensors.push_back(
        {std::string(1, "qkv"[i]),
         "F32",
         {layer.tokens(), sides[i]->size(), static_cast<uint64_t>(sides[i]->front().cols())},
         std::as_bytes(std::span(values[i]))});
  }
  if (!lengths.empty())
    tensors.push_back({"seq_lens", "I64", {lengths.size()}, std::as_bytes(std::span(lengths))});
  EXPECT_OK(WriteFileAtomically(path, AsBytes(SerializeSafetensors(tensors, {}))));
  return path;
}

LayerDump OpenLayer(const std::string& name, const Activations& layer,
                    const std::vector<int64_t>& lengths) {
  absl::StatusOr<LayerDump> dump = LayerDump::Open(0, {WriteLayer(name, layer, lengths)});
  EXPECT_OK(dump);
  return *std::move(dump);
}

RowMatrix RandomRows(Eigen::Index rows, Eigen::Index columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  return RowMatrix::NullaryExpr(rows, columns, [&] { return normal(random); });
}

Eigen::MatrixXd RandomMoment(uint32_t dim, uint32_t seed) {
  const Eigen::MatrixXd rows = RandomRows(dim, dim, seed).cast<double>();
  const Eigen::MatrixXd basis = Eigen::HouseholderQR<Eigen::MatrixXd>(rows).householderQ();
  Eigen::VectorXd values(dim);
  for (uint32_t i = 0; i < dim; ++i)
    values(i) = 0.05 + 50.0 * std::exp(-static_cast<double>(i) / 6);
  return basis * values.asDiagonal() * basis.transpose();
}

}  // namespace oscarkv::calibrate::testing
