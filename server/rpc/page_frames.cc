#include "server/rpc/page_frames.h"

#include <string>

#include <grpcpp/support/slice.h>

namespace oscarkv {
namespace {

// Field numbers of kv_cache.proto, each with wire type 2 (length-delimited) or 0 (varint).
constexpr uint8_t kGetReplyChunkTag = (2 << 3) | 2;
constexpr uint8_t kChunkItemTag = (1 << 3) | 0;
constexpr uint8_t kChunkOffsetTag = (2 << 3) | 0;
constexpr uint8_t kChunkDataTag = (3 << 3) | 2;

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>((value & 0x7f) | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

// A number field, which proto3 leaves out when it is 0.
void AppendNumber(uint8_t tag, uint64_t value, std::string* out) {
  if (value == 0) return;
  out->push_back(static_cast<char>(tag));
  AppendVarint(value, out);
}

// What stands before `bytes` bytes of a length-delimited field.
void AppendLength(uint8_t tag, uint64_t bytes, std::string* out) {
  out->push_back(static_cast<char>(tag));
  AppendVarint(bytes, out);
}

// A slice over the bytes, which keeps their holder until gRPC has let go of it.
grpc::Slice HeldSlice(const HeldBytes& part) {
  auto* holder = new std::shared_ptr<const void>(part.holder);
  return grpc::Slice(
      const_cast<std::byte*>(part.bytes.data()), part.bytes.size(),
      [](void* held) { delete static_cast<std::shared_ptr<const void>*>(held); }, holder);
}

}  // namespace

grpc::ByteBuffer FrameChunk(uint32_t item, uint64_t offset, const std::vector<HeldBytes>& parts) {
  uint64_t bytes = 0;
  for (const HeldBytes& part : parts) bytes += part.bytes.size();
  std::string fields;
  AppendNumber(kChunkItemTag, item, &fields);
  AppendNumber(kChunkOffsetTag, offset, &fields);
  if (bytes > 0) AppendLength(kChunkDataTag, bytes, &fields);
  std::string header;
  AppendLength(kGetReplyChunkTag, fields.size() + bytes, &header);
  header += fields;
  std::vector<grpc::Slice> slices;
  slices.reserve(parts.size() + 1);
  slices.emplace_back(header);
  for (const HeldBytes& part : parts) slices.push_back(HeldSlice(part));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer FrameMessage(const v1::GetReply& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace oscarkv
