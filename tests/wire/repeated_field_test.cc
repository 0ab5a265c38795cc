// Messages put together and taken apart by hand: what protobuf writes and reads.
#include "proto/convert/repeated_field.h"

#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {
namespace {

using ::testing::ElementsAre;

constexpr int kKeys = v1::LookupRequest::kKeysFieldNumber;

v1::LookupRequest Request(const std::vector<std::string>& keys) {
  v1::LookupRequest request;
  request.mutable_scope()->set_fingerprint("fingerprint");
  request.mutable_scope()->set_server_epoch(7);
  for (const std::string& key : keys) request.add_keys(key);
  request.set_mode(v1::LookupRequest::EACH);
  request.set_session_id(9);
  request.set_lease_ms(300);
  return request;
}

TEST(RepeatedFieldTest, IsWhatProtobufWrites) {
  const std::vector<std::string> keys = {std::string(16, 'a'), "", std::string(127, 'b'),
                                         std::string(128, 'c'), std::string(20'000, 'd')};
  const v1::LookupRequest request = Request(keys);
  v1::LookupRequest scope;
  *scope.mutable_scope() = request.scope();
  v1::LookupRequest rest = request;
  rest.clear_scope();
  rest.clear_keys();
  std::string text = scope.SerializeAsString();
  for (const std::string& key : keys) AppendValue(kKeys, key, &text);
  rest.AppendToString(&text);
  EXPECT_EQ(text, request.SerializeAsString());

  v1::LookupReply reply;
  reply.add_pages()->set_bytes(1 << 20);
  reply.add_pages();
  std::string pages;
  for (const v1::PageInfo& page : reply.pages())
    AppendValue(v1::LookupReply::kPagesFieldNumber, page, &pages);
  EXPECT_EQ(pages, reply.SerializeAsString());
}

TEST(RepeatedFieldTest, IsReadInWhateverOrderAndSlicesItComes) {
  const v1::LookupRequest request = Request({"one", "", "three"});
  const std::string text = request.SerializeAsString();
  v1::LookupRequest later;
  later.add_keys("four");
  later.set_lease(true);
  const std::string all = text + later.SerializeAsString();  // protobuf merges the two
  for (size_t cut = 0; cut <= all.size(); ++cut) {
    const grpc::Slice slices[] = {grpc::Slice(all.substr(0, cut)), grpc::Slice(all.substr(cut))};
    RepeatedField keys;
    v1::LookupRequest rest;
    ASSERT_TRUE(keys.Parse(grpc::ByteBuffer(slices, 2), kKeys, &rest));
    EXPECT_THAT(keys.values(), ElementsAre("one", "", "three", "four"));
    v1::LookupRequest expected = request;
    expected.clear_keys();
    expected.set_lease(true);
    EXPECT_EQ(rest.SerializeAsString(), expected.SerializeAsString());
  }
}

TEST(RepeatedFieldTest, SkipsFieldsThatItDoesNotKnow) {
  std::string text = Request({"one"}).SerializeAsString();
  text += std::string("\x98\x06\x05", 3);  // 99, a varint
  text += std::string(
              "\x99\x06"
              "12345678",
              10) +
          std::string(
              "\x9d\x06"
              "1234",
              6);  // 64, 32 bits
  AppendValue(99, "text", &text);
  RepeatedField keys;
  v1::LookupRequest rest;
  ASSERT_TRUE(keys.Parse(FrameText(text), kKeys, &rest));
  EXPECT_THAT(keys.values(), ElementsAre("one"));
  EXPECT_EQ(rest.lease_ms(), 300u);
}

TEST(RepeatedFieldTest, NoPartOfAMessageIsTakenForOne) {
  const v1::LookupRequest request = Request({std::string(200, 'k'), "two"});
  const std::string text = request.SerializeAsString();
  int refused = 0;
  for (size_t bytes = 0; bytes < text.size(); ++bytes) {
    const std::string part = text.substr(0, bytes);
    RepeatedField keys;
    v1::LookupRequest rest;
    v1::LookupRequest whole;
    const bool parsed = keys.Parse(FrameText(part), kKeys, &rest);
    EXPECT_EQ(parsed, whole.ParseFromString(part)) << bytes;
    refused += parsed ? 0 : 1;
  }
  EXPECT_GT(refused, 200);
}

TEST(RepeatedFieldTest, MalformedMessagesAreRefused) {
  RepeatedField keys;
  v1::LookupRequest rest;
  for (const std::string& text :
       {std::string("\x12"),
        std::string("\x12\x05"
                    "1234",
                    6),  // no length; too short
        std::string("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                    11),                                         // longer than there can be
        std::string(11, '\xff'), std::string("\x13\x14", 2)}) {  // no varint; a group
    EXPECT_FALSE(keys.Parse(FrameText(text), kKeys, &rest));
  }
}

}  // namespace
}  // namespace oscarkv
