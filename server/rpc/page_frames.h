// GetReply messages framed by hand around bytes that stay where they are: a stock protobuf client
// reads them, and a page leaves the server without a copy.
#ifndef OSCARKV_SERVER_RPC_PAGE_FRAMES_H_
#define OSCARKV_SERVER_RPC_PAGE_FRAMES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "kernels/base/bytes.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {

// A part of a page, and what keeps it in place.
struct HeldBytes {
  ByteView bytes;
  std::shared_ptr<const void> holder;
};

// GetReply{chunk{item, offset, data}}, data being the parts one after the other: the bytes that
// protobuf would write.
grpc::ByteBuffer FrameChunk(uint32_t item, uint64_t offset, const std::vector<HeldBytes>& parts);

// Any GetReply, serialised.
grpc::ByteBuffer FrameMessage(const v1::GetReply& message);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_PAGE_FRAMES_H_
