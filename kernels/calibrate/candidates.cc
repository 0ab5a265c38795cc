#include "kernels/calibrate/candidates.h"

#include <utility>

namespace oscarkv::calibrate {
namespace {

using Eigen::MatrixXd;

// What one side needs of a head's moments.
struct SideMoments {
  const MatrixXd* rows;  // second moment of the rows
  const Eigen::RowVectorXd* mean;
  const MatrixXd* oscar;  // the moment whose eigenvectors OSCAR rotates by
  MatrixXd weight;        // how errors count
};

SideMoments Of(Side side, const HeadMoments& head) {
  if (side == Side::kK) return {&head.k, &head.k_mean, &head.q_plain, head.q};
  return {&head.v, &head.v_mean, &head.v_scored, MatrixXd::Identity(head.v.rows(), head.v.cols())};
}

MatrixPair FitOne(Method method, const SideMoments& head, bool offset, double condition_max) {
  const auto dim = static_cast<uint32_t>(head.rows->rows());
  if (method == Method::kIdentity) return NaiveCandidate(dim).pairs[0];
  if (method == Method::kHadamard) return FitHadamard(dim);
  if (method == Method::kOscar) return FitOscar(*head.oscar);
  const MatrixXd centred = *head.rows - head.mean->transpose() * *head.mean;
  return FitBalanced(offset ? centred : *head.rows, head.weight, condition_max);
}

}  // namespace

std::vector<SideTransform> Candidate::Build(uint32_t heads) const {
  std::vector<SideTransform> built;
  for (uint32_t head = 0; head < heads; ++head) {
    const MatrixPair& pair = pairs[pairs.size() == 1 ? 0 : head];
    const Eigen::RowVectorXd none = Eigen::RowVectorXd::Zero(pair.forward.rows());
    built.push_back(ToSideTransform(pair, offsets.empty() ? none : offsets[head], 0.0f));
  }
  return built;
}

Candidate NaiveCandidate(uint32_t dim) {
  const MatrixXd identity = MatrixXd::Identity(dim, dim);
  return {"naive", {{identity, identity}}, {}};
}

namespace {

// One method's transform, for every head or one that they share; `shared` is what `oscar` fits the
// latter to.
Candidate MakeCandidate(Method method, const char* name, bool per_head, bool offset,
                        const std::vector<SideMoments>& heads, const MatrixXd& shared,
                        double condition_max) {
  Candidate candidate;
  candidate.method = std::string(name) + (offset ? "+offset" : "");
  if (per_head) {
    for (const SideMoments& head : heads)
      candidate.pairs.push_back(FitOne(method, head, offset, condition_max));
  } else {
    SideMoments layer = heads[0];
    layer.oscar = &shared;
    candidate.pairs.push_back(FitOne(method, layer, offset, condition_max));
  }
  if (offset) {
    for (const SideMoments& head : heads) candidate.offsets.push_back(*head.mean);
  }
  return candidate;
}

}  // namespace

std::vector<Candidate> MakeCandidates(Side side, const LayerMoments& moments,
                                      const CalibrateOptions& options) {
  std::vector<SideMoments> heads;
  for (const HeadMoments& head : moments.heads) heads.push_back(Of(side, head));
  MatrixXd shared = MatrixXd::Zero(heads[0].oscar->rows(), heads[0].oscar->cols());
  for (const SideMoments& head : heads) shared += *head.oscar / static_cast<double>(heads.size());
  const bool free = options.method == Method::kBest || options.method == Method::kBalanced;

  std::vector<Candidate> candidates;
  const auto add = [&](Method method, const char* name, bool per_head) {
    if (options.method != Method::kBest && options.method != method) return;
    for (const bool offset : {false, true}) {
      if (options.offset.has_value() ? *options.offset != offset : offset && !free) continue;
      candidates.push_back(
          MakeCandidate(method, name, per_head, offset, heads, shared, options.condition_max));
    }
  };
  // Naive INT2 stands beside every choice; as a candidate of its own it would only win by chance.
  if (options.method == Method::kIdentity) add(Method::kIdentity, "identity", false);
  add(Method::kHadamard, "hadamard", false);
  if (!options.per_head.value_or(false)) add(Method::kOscar, "oscar", false);
  if (options.per_head.value_or(free && heads.size() > 1)) add(Method::kOscar, "oscar-head", true);
  add(Method::kBalanced, "balanced", true);
  return candidates;
}

}  // namespace oscarkv::calibrate
