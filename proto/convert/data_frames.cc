#include "proto/convert/data_frames.h"

#include <algorithm>
#include <utility>

#include <grpcpp/support/slice.h>

#include "proto/convert/wire_format.h"

namespace oscarkv {
namespace {

// Field numbers of kv_cache.proto that are written here.
constexpr int kItem = v1::GetReply::kItemFieldNumber;
constexpr int kChunk = v1::GetReply::kChunkFieldNumber;
static_assert(kChunk == v1::PutRequest::kChunkFieldNumber);

// A slice over the bytes, which keeps their holder until gRPC has let go of it.
grpc::Slice HeldSlice(const HeldBytes& part) {
  auto* holder = new std::shared_ptr<const void>(part.holder);
  return grpc::Slice(
      const_cast<std::byte*>(part.bytes.data()), part.bytes.size(),
      [](void* held) { delete static_cast<std::shared_ptr<const void>*>(held); }, holder);
}

// A message whose field `part` is `fields` and then field `data`, the parts.
grpc::ByteBuffer Frame(int part, std::string fields, int data, std::span<const HeldBytes> parts) {
  uint64_t bytes = 0;
  for (const HeldBytes& held : parts) bytes += held.bytes.size();
  if (bytes > 0) {
    AppendTag(data, kBytes, &fields);
    AppendVarint(bytes, &fields);
  }
  std::string header;
  AppendTag(part, kBytes, &header);
  AppendVarint(fields.size() + bytes, &header);
  header += fields;
  std::vector<grpc::Slice> slices;
  slices.reserve(parts.size() + 1);
  slices.emplace_back(header);
  for (const HeldBytes& held : parts) slices.push_back(HeldSlice(held));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

grpc::ByteBuffer FrameChunk(uint32_t item, uint64_t offset, std::span<const HeldBytes> parts) {
  v1::Chunk chunk;
  chunk.set_item(item);
  chunk.set_offset(offset);
  return Frame(kChunk, chunk.SerializeAsString(), v1::Chunk::kDataFieldNumber, parts);
}

grpc::ByteBuffer FrameItem(const v1::GetItem& item, std::span<const HeldBytes> parts) {
  return Frame(kItem, item.SerializeAsString(), v1::GetItem::kDataFieldNumber, parts);
}

grpc::ByteBuffer FrameMessage(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

bool ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::Slice whole;
  if (buffer.TrySingleSlice(&whole).ok() || buffer.DumpToSingleSlice(&whole).ok())
    return message->ParseFromArray(whole.begin(), static_cast<int>(whole.size()));
  return false;
}

// Reads on over the slices of a message. Everything returns false where the message ends too early.
class DataFrame::Reader {
 public:
  explicit Reader(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
  }

  uint64_t left() const { return left_; }

  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (left_ == 0) return false;
      const auto byte = static_cast<uint64_t>(Run(1)[0]);
      *value |= (byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }

  // Calls `take` with the next `bytes` bytes, in pieces.
  template <typename Take>
  bool Each(uint64_t bytes, Take&& take) {
    if (bytes > left_) return false;
    while (bytes > 0) {
      const ByteView run = Run(bytes);
      bytes -= run.size();
      take(run);
    }
    return true;
  }

  // A field's value, `bytes` of which hold it, appended to `out` as it stands.
  bool Copy(uint64_t bytes, std::string* out) {
    return Each(bytes, [out](ByteView run) { out->append(AsText(run)); });
  }

 private:
  // The next bytes that lie together: `most` at most, one at least. Some must be left.
  ByteView Run(uint64_t most) {
    while (at_ == slices_[slice_].size()) {
      ++slice_;
      at_ = 0;
    }
    const grpc::Slice& slice = slices_[slice_];
    const auto* begin = reinterpret_cast<const std::byte*>(slice.begin()) + at_;
    const ByteView run(begin, std::min<uint64_t>(most, slice.size() - at_));
    at_ += run.size();
    left_ -= run.size();
    return run;
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t at_ = 0;  // in it
  uint64_t left_ = 0;
};

// The fields of the part: the data's bytes stay, all else goes to the head.
bool DataFrame::ReadPart(Reader& reader, uint64_t bytes, std::span<const DataField> data_fields) {
  if (bytes > reader.left()) return false;
  const uint64_t after = reader.left() - bytes;
  const auto here = [&] { return reader.left() - after; };
  while (reader.left() > after) {
    uint64_t tag = 0;
    if (!reader.Varint(&tag)) return false;
    const auto type = static_cast<uint32_t>(tag & 7);
    uint64_t value = 0;
    const bool is_data =
        type == kBytes && std::any_of(data_fields.begin(), data_fields.end(), [&](DataField field) {
          return field.part == part_ && tag >> 3 == static_cast<uint64_t>(field.data);
        });
    if (is_data) {
      if (!reader.Varint(&value) || reader.left() < after || value > here()) return false;
      data_.clear();  // protobuf, too, takes the last
      data_bytes_ = value;
      reader.Each(value, [this](ByteView run) { data_.push_back(run); });
      continue;
    }
    AppendVarint(tag, &head_);
    if (type == kVarint || type == kBytes) {
      if (!reader.Varint(&value)) return false;
      AppendVarint(value, &head_);
      if (type == kVarint) continue;
    } else if (type == kFixed64 || type == kFixed32) {
      value = type == kFixed64 ? 8 : 4;
    } else {
      return false;  // groups, which proto3 has not
    }
    if (reader.left() < after || value > here() || !reader.Copy(value, &head_)) return false;
  }
  return reader.left() == after;
}

absl::StatusOr<DataFrame> DataFrame::Parse(const grpc::ByteBuffer& message,
                                           std::span<const DataField> data_fields) {
  const auto malformed = [] { return absl::InvalidArgumentError("a message is malformed"); };
  DataFrame frame;
  if (!message.Dump(&frame.slices_).ok()) return malformed();
  Reader reader(frame.slices_);
  while (reader.left() > 0) {
    uint64_t tag = 0;
    uint64_t value = 0;
    if (!reader.Varint(&tag)) return malformed();
    const auto type = static_cast<uint32_t>(tag & 7);
    const uint64_t field = tag >> 3;
    if (field == 0 || field > (uint64_t{1} << 29) - 1) return malformed();
    if (type == kFixed64 || type == kFixed32) {
      value = type == kFixed64 ? 8 : 4;
    } else if (type > kBytes || !reader.Varint(&value)) {
      return malformed();
    } else if (type == kVarint) {
      continue;
    }
    // All messages that come here have the same two or three parts.
    const bool is_part = type == kBytes && field <= v1::GetReply::kEndFieldNumber;
    if (is_part) {
      if (frame.part_ != 0) return absl::InvalidArgumentError("a message has two parts");
      frame.part_ = static_cast<int>(field);
      if (!frame.ReadPart(reader, value, data_fields)) return malformed();
    } else if (!reader.Each(value, [](ByteView) {})) {
      return malformed();
    }
  }
  return frame;
}

absl::StatusOr<DataFrame> DataFrame::OfGetReply(const grpc::ByteBuffer& message) {
  static constexpr DataField kData[] = {{kItem, v1::GetItem::kDataFieldNumber},
                                        {kChunk, v1::Chunk::kDataFieldNumber}};
  return Parse(message, kData);
}

absl::StatusOr<DataFrame> DataFrame::OfPutRequest(const grpc::ByteBuffer& message) {
  static constexpr DataField kData[] = {{kChunk, v1::Chunk::kDataFieldNumber}};
  return Parse(message, kData);
}

void DataFrame::CopyData(std::byte* room) const {
  for (const ByteView run : data_) {
    std::memcpy(room, run.data(), run.size());
    room += run.size();
  }
}

}  // namespace oscarkv
