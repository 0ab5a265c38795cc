// Messages that carry pages, framed and read by hand: their bytes stay where they are, and go once
// from where they arrived to where they are wanted. On the wire they are what protobuf writes and
// reads.
#ifndef OSCARKV_PROTO_CONVERT_DATA_FRAMES_H_
#define OSCARKV_PROTO_CONVERT_DATA_FRAMES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include "kernels/base/bytes.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {

// Bytes of a page, and what keeps them in place.
struct HeldBytes {
  ByteView bytes;
  std::shared_ptr<const void> holder;
};

// GetReply{chunk{item, offset, data}}, and a PutRequest of the same chunk: the two are alike.
// `data` is the parts one after the other.
grpc::ByteBuffer FrameChunk(uint32_t item, uint64_t offset, std::span<const HeldBytes> parts);
// GetReply{item}, its `data` being the parts.
grpc::ByteBuffer FrameItem(const v1::GetItem& item, std::span<const HeldBytes> parts);
// Any message, serialised.
grpc::ByteBuffer FrameMessage(const google::protobuf::MessageLite& message);

// False: it is not such a message.
bool ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);

// The part of a message that is one of several, in two pieces: what protobuf is to read, and bytes
// that stay where they arrived.
class DataFrame {
 public:
  DataFrame(DataFrame&&) = default;
  DataFrame& operator=(DataFrame&&) = default;

  // kInvalidArgument: not such a message.
  static absl::StatusOr<DataFrame> OfGetReply(const grpc::ByteBuffer& message);
  static absl::StatusOr<DataFrame> OfPutRequest(const grpc::ByteBuffer& message);

  // The field's number: v1::GetReply::PartCase or v1::PutRequest::PartCase.
  int part() const { return part_; }
  // The part without its data.
  const std::string& head() const { return head_; }
  uint64_t data_bytes() const { return data_bytes_; }
  // Copies the data to where `room` begins; data_bytes() must fit.
  void CopyData(std::byte* room) const;

 private:
  // Where the data of a part is: field `data` of field `part`.
  struct DataField {
    int part;
    int data;
  };
  class Reader;
  DataFrame() = default;
  static absl::StatusOr<DataFrame> Parse(const grpc::ByteBuffer& message,
                                         std::span<const DataField> data_fields);
  bool ReadPart(Reader& reader, uint64_t bytes, std::span<const DataField> data_fields);

  int part_ = 0;
  std::string head_;
  std::vector<grpc::Slice> slices_;  // hold what data_ points to
  std::vector<ByteView> data_;
  uint64_t data_bytes_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_CONVERT_DATA_FRAMES_H_
