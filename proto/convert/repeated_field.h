// Messages that are mostly one repeated field of bytes or messages, such as the keys of a look-up:
// read and written without an object for each. On the wire they are what protobuf writes and reads.
#ifndef OSCARKV_PROTO_CONVERT_REPEATED_FIELD_H_
#define OSCARKV_PROTO_CONVERT_REPEATED_FIELD_H_

#include <string>
#include <string_view>
#include <vector>

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

namespace oscarkv {

// A message in two: the values of its field `field`, in order, and all else.
class RepeatedField {
 public:
  // Parses all else into `rest`. False: it is not such a message.
  bool Parse(const grpc::ByteBuffer& message, int field, google::protobuf::MessageLite* rest);

  // Valid as long as the object.
  const std::vector<std::string_view>& values() const { return values_; }

 private:
  bool Split(std::string_view message, int field, std::string* rest);

  grpc::Slice message_;
  std::vector<std::string_view> values_;
};

// One value of a repeated field, appended to a message.
void AppendValue(int field, std::string_view value, std::string* message);
void AppendValue(int field, const google::protobuf::MessageLite& value, std::string* message);
// A message that was put together.
grpc::ByteBuffer FrameText(std::string_view message);

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_CONVERT_REPEATED_FIELD_H_
