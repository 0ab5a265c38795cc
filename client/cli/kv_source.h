// K and V of a sequence of tokens, as safetensors files hold them.
#ifndef OSCARKV_CLIENT_CLI_KV_SOURCE_H_
#define OSCARKV_CLIENT_CLI_KV_SOURCE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/codec/page_codec.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::cli {

// One sequence, mapped from its files and read where it lies.
class KvSource {
 public:
  // `paths` is one file with k [layers, tokens, kv_heads, head_dim] and v likewise, or one file a
  // layer, named layer_<number>*.safetensors, (or folders of them) with k and v [tokens, kv_heads,
  // head_dim] and, optionally, seq_lens. Each F32, F16 or BF16, all the same. `sequence` chooses
  // among the sequences of a dump that has several. kInvalidArgument names the file and the tensor,
  // what was expected and what was found.
  static absl::StatusOr<KvSource> Open(const std::vector<std::string>& paths,
                                       std::optional<uint64_t> sequence);

  // page_tokens is 0: the caller's to choose.
  const Geometry& geometry() const { return geometry_; }
  uint64_t tokens() const { return tokens_; }
  // A cache whose slots are the sequence's tokens; for reading only. Borrows from this.
  EngineView view() const;
  // K or V of `count` tokens of one layer.
  ByteView KRows(uint32_t layer, uint64_t first, uint64_t count) const;
  ByteView VRows(uint32_t layer, uint64_t first, uint64_t count) const;

 private:
  KvSource() = default;
  absl::Status AddWhole(const SafetensorsFile& file);
  absl::Status AddLayer(const std::string& path, std::optional<uint64_t> sequence);
  absl::Status AddRows(const Tensor& k, const Tensor& v, uint64_t first, uint64_t count);

  std::vector<SafetensorsFile> files_;
  Geometry geometry_;
  uint64_t tokens_ = 0;
  std::vector<std::byte*> k_;  // [layers]; never written through
  std::vector<std::byte*> v_;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_KV_SOURCE_H_
