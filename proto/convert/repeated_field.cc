#include "proto/convert/repeated_field.h"

#include <cstdint>

#include "proto/convert/wire_format.h"

namespace oscarkv {
namespace {

bool TakeVarint(std::string_view* text, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64 && !text->empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(text->front());
    text->remove_prefix(1);
    *value |= uint64_t{byte & 0x7fu} << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

void AppendHead(int field, uint64_t bytes, std::string* out) {
  AppendTag(field, kBytes, out);
  AppendVarint(bytes, out);
}

}  // namespace

bool RepeatedField::Parse(const grpc::ByteBuffer& message, int field,
                          google::protobuf::MessageLite* rest) {
  values_.clear();
  if (!message.TrySingleSlice(&message_).ok() && !message.DumpToSingleSlice(&message_).ok())
    return false;
  std::string others;
  const std::string_view text(reinterpret_cast<const char*>(message_.begin()), message_.size());
  return Split(text, field, &others) && rest->ParseFromString(others);
}

bool RepeatedField::Split(std::string_view message, int field, std::string* rest) {
  while (!message.empty()) {
    const std::string_view from_tag = message;
    uint64_t tag = 0;
    uint64_t bytes = 0;
    if (!TakeVarint(&message, &tag)) return false;
    switch (tag & 7) {
      case kVarint:
        if (!TakeVarint(&message, &bytes)) return false;
        bytes = 0;
        break;
      case kFixed64:
        bytes = 8;
        break;
      case kFixed32:
        bytes = 4;
        break;
      case kBytes:
        if (!TakeVarint(&message, &bytes)) return false;
        break;
      default:  // groups, which proto3 has not
        return false;
    }
    if (bytes > message.size()) return false;
    if (tag == ((static_cast<uint64_t>(field) << 3) | kBytes)) {
      values_.push_back(message.substr(0, bytes));
    } else {
      rest->append(from_tag.substr(0, from_tag.size() - message.size() + bytes));
    }
    message.remove_prefix(bytes);
  }
  return true;
}

void AppendValue(int field, std::string_view value, std::string* message) {
  AppendHead(field, value.size(), message);
  message->append(value);
}

void AppendValue(int field, const google::protobuf::MessageLite& value, std::string* message) {
  AppendHead(field, value.ByteSizeLong(), message);
  value.AppendToString(message);
}

grpc::ByteBuffer FrameText(std::string_view message) {
  const grpc::Slice slice(message.data(), message.size());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace oscarkv
