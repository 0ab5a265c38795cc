// The transform of one layer that `encode` and `decode` apply to rows in files.
#ifndef OSCARKV_CLIENT_CLI_TRANSFORM_SOURCE_H_
#define OSCARKV_CLIENT_CLI_TRANSFORM_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/codec/geometry.h"
#include "kernels/codec/oscar/row_kernels.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::cli {

struct LayerSource {
  TransformSet set;
  uint32_t layer = 0;  // within `set`
  // What encoded files are held against: the SHA-256 of the transform file in hexadecimal, or
  // "identity" or "hadamard".
  std::string id;
  uint64_t fitted_k_bits = 0;  // what the file's report says; 0: nothing
  uint64_t fitted_v_bits = 0;
};

// `name` is "identity", "hadamard" (both the same for every layer, without clip) or a transform
// file. kOutOfRange: the file has no such layer; kFailedPrecondition: it is for other KV heads or
// head dims than `geometry`, naming both; or what reading it says.
absl::StatusOr<LayerSource> LoadLayer(const std::string& name, uint32_t layer,
                                      const Geometry& geometry);

// The transforms of one side in the form that `kernels` want, one for all heads or one a head.
class PreparedHeads {
 public:
  PreparedHeads(const RowKernels& kernels, const std::vector<SideTransform>& heads);
  const PreparedTransform* at(uint32_t head) const {
    return heads_[heads_.size() == 1 ? 0 : head].get();
  }

 private:
  std::vector<std::unique_ptr<const PreparedTransform>> heads_;
};

// The kernels of --backend: "reference" or "cpu".
const RowKernels& KernelsOf(const std::string& backend);

// Rows are read, coded and written in runs of so many tokens, so that files of any length take
// bounded memory.
inline constexpr uint64_t kRunTokens = 1024;

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TRANSFORM_SOURCE_H_
