// Dumped activations of a model: Q, K and V at the input of attention (K and Q after RoPE), one or
// more safetensors files a layer, named layer_<number>*.safetensors.
//   q [tokens, q_heads, head_dim]   k [tokens, kv_heads, head_dim]
//   v [tokens, kv_heads, v_head_dim]    each F32, F16 or BF16
//   seq_lens [sequences] I64, optional: the lengths of the sequences in the file, which add up to
//   tokens; one sequence if absent
#ifndef OSCARKV_KERNELS_CALIBRATE_DUMP_H_
#define OSCARKV_KERNELS_CALIBRATE_DUMP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <Eigen/Dense>

#include "kernels/base/dtype.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::calibrate {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The shape that every layer of a dump has.
struct DumpShape {
  uint32_t q_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t k_dim = 0;
  uint32_t v_dim = 0;
  DType dtype = DType::kFp32;

  uint32_t queries_per_kv_head() const { return q_heads / kv_heads; }
  bool operator==(const DumpShape&) const = default;
};

// A run of tokens of one sequence within a file.
struct Sequence {
  size_t file = 0;
  uint64_t first_token = 0;
  uint64_t tokens = 0;
};

enum class Tensor3 { kQ, kK, kV };

// One layer's dump. Immutable; reads of different sequences may run in parallel.
class LayerDump {
 public:
  // kInvalidArgument names the layer, the file and the tensor: missing, of another shape or dtype
  // than the first file's, head counts that do not divide, seq_lens that do not add up.
  static absl::StatusOr<LayerDump> Open(uint32_t layer, const std::vector<std::string>& paths);

  uint32_t layer() const { return layer_; }
  const DumpShape& shape() const { return shape_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }

  // Rows `first`..`first + count` of one head of one sequence, as float [count, dim].
  // kInvalidArgument names layer, tensor and token when a value is not finite.
  absl::StatusOr<RowMatrix> Read(Tensor3 which, uint32_t head, const Sequence& sequence,
                                 uint64_t first, uint64_t count) const;
  // Lets the operating system drop rows `first`..`first + count` of `sequence`, which have been
  // read.
  void Release(const Sequence& sequence, uint64_t first, uint64_t count) const;
  // Reads rows and forgets them: kInvalidArgument when one of them is not finite.
  absl::Status CheckFinite(const Sequence& sequence, uint64_t first, uint64_t count) const;

 private:
  struct File {
    SafetensorsFile source;
    Tensor tensors[3];  // by Tensor3
  };
  uint32_t layer_ = 0;
  DumpShape shape_;
  std::vector<File> files_;
  std::vector<Sequence> sequences_;
};

// The files of a dump by layer: `paths` are files or folders of files. kInvalidArgument: no files,
// no layer_<number> in a name, a layer missing in 0..last.
absl::StatusOr<std::map<uint32_t, std::vector<std::string>>> FindDumpFiles(
    const std::vector<std::string>& paths);

// The lengths of the sequences in a file of `tokens` tokens. kInvalidArgument: seq_lens that do not
// add up to them.
absl::StatusOr<std::vector<uint64_t>> SequenceLengths(const Safetensors& file, uint64_t tokens);

// The layers of a dump by number: `paths` are files or folders of files. kInvalidArgument: no
// layer_<number> in a name, a layer missing in 0..last, layers of different shapes.
absl::StatusOr<std::vector<LayerDump>> OpenDump(const std::vector<std::string>& paths);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_DUMP_H_
