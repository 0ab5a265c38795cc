// A namespace: everything that makes page bytes comparable. Two processes share pages only under
// one fingerprint.
#ifndef OSCARKV_PROTO_WIRE_NAMESPACE_SPEC_H_
#define OSCARKV_PROTO_WIRE_NAMESPACE_SPEC_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

#include "kernels/codec/geometry.h"

namespace oscarkv {

// The part of a model's tensors that a worker holds.
struct ShardSpec {
  uint32_t tp_rank = 0;
  uint32_t tp_size = 1;
  uint32_t pp_rank = 0;
  uint32_t pp_size = 1;
  bool operator==(const ShardSpec&) const = default;
};

struct NamespaceSpec {
  std::string tenant = "default";
  std::string model;  // name and revision name the weights
  std::string model_revision;
  std::string adapter;  // LoRA or the like; empty for none
  std::string salt;     // separates caches that must not share
  std::string hash_scheme = "sha256-chain-v1";
  ShardSpec shard;
  Geometry geometry;
  CodecSpec codec;
  bool operator==(const NamespaceSpec&) const = default;
};

// kInvalidArgument: a name that is empty (tenant, model, hash_scheme) or over 256 bytes, or
// geometry or codec that do not validate.
absl::Status ValidateNamespaceSpec(const NamespaceSpec& spec);

// SHA-256 of the canonical text of the spec: 32 raw bytes. The canonical text is one "name=value\n"
// line per field, in the order of declaration, values as hexadecimal, preceded by "oscarkv
// namespace v1\n" and the format version of the codec.
std::string Fingerprint(const NamespaceSpec& spec);

// What differs, field by field, for people: "geometry.page_tokens 64 / 32; codec.group 0 / 64".
// Empty when equal.
std::string DescribeDifference(const NamespaceSpec& mine, const NamespaceSpec& theirs);

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_WIRE_NAMESPACE_SPEC_H_
