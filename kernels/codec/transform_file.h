// Transform sets as files: safetensors with, for each side s of k and v,
//
//   s.forward, s.inverse  F32 [layers, heads, dim, dim]   heads is 1 (shared) or the KV heads
//   s.offset              F32 [layers, heads, dim]
//   s.clip_ratio          F32 [layers, heads]
//
// and metadata "format" ("oscarkv-transform-1"), "kv_heads", "k_methods" and "v_methods" (one name
// a layer, separated by spaces) and "report" (JSON: everything needed to judge the set). The
// content hash of a set is the SHA-256 of the file.
#ifndef OSCARKV_KERNELS_CODEC_TRANSFORM_FILE_H_
#define OSCARKV_KERNELS_CODEC_TRANSFORM_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv {

// kInvalidArgument: not such a file; names the tensor, or layer, head and side (see
// TransformSet::Create).
absl::StatusOr<TransformSet> ParseTransformFile(ByteView file);

// The file's bytes. A set whose layers differ in how many transforms they have (shared or per head)
// is written per head.
std::string SerializeTransformFile(const TransformSet& set, std::string_view report_json);

// The report of a transform file, "{}" when it has none.
absl::StatusOr<std::string> TransformFileReport(ByteView file);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_TRANSFORM_FILE_H_
