// Frames made by hand around held bytes: what protobuf would have written, and nothing let go too
// early.
#include "server/rpc/page_frames.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

std::string TextOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices)
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return text;
}

std::string Content(size_t bytes) {
  std::string content(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(i * 31 + i / 256);
  return content;
}

// `content` in `count` parts.
std::vector<HeldBytes> Parts(const std::string& content, size_t count) {
  std::vector<HeldBytes> parts;
  const auto holder = std::make_shared<int>();
  for (size_t i = 0; i < count; ++i) {
    const size_t first = content.size() * i / count;
    const size_t end = content.size() * (i + 1) / count;
    parts.push_back({AsBytes(content).subspan(first, end - first), holder});
  }
  return parts;
}

TEST(PageFramesTest, AreWhatProtobufWrites) {
  // Around every length of a varint.
  const size_t sizes[] = {0,   1,     63,    64,    120,   127,     128,
                          129, 16371, 16383, 16384, 65536, 1 << 20, (1 << 21) + 1};
  const uint64_t offsets[] = {0, 1, 127, 128, 1 << 14, uint64_t{1} << 35, ~uint64_t{0}};
  for (const size_t size : sizes) {
    const std::string content = Content(size);
    for (const uint64_t offset : offsets) {
      for (const uint32_t item : {0u, 1u, 128u, ~0u}) {
        v1::GetReply reply;
        reply.mutable_chunk()->set_item(item);
        reply.mutable_chunk()->set_offset(offset);
        reply.mutable_chunk()->set_data(content);
        const size_t count = 1 + (item + offset) % 4;
        ASSERT_TRUE(TextOf(FrameChunk(item, offset, Parts(content, count))) ==
                    reply.SerializeAsString())
            << "item " << item << ", offset " << offset << ", " << size << " bytes";
      }
    }
  }
}

TEST(PageFramesTest, NoPartsAreAnEmptyChunk) {
  v1::GetReply reply;
  reply.mutable_chunk();
  EXPECT_EQ(TextOf(FrameChunk(0, 0, {})), reply.SerializeAsString());
}

TEST(PageFramesTest, MessagesAreSerialised) {
  v1::GetReply reply;
  reply.mutable_item()->set_bytes(5);
  reply.mutable_item()->mutable_result()->set_status(v1::CORRUPT);
  EXPECT_EQ(TextOf(FrameMessage(reply)), reply.SerializeAsString());
}

TEST(PageFramesTest, PartsAreNotCopied) {
  std::string content(1 << 16, 'a');
  const grpc::ByteBuffer buffer = FrameChunk(0, 0, Parts(content, 1));
  content[1000] = 'b';
  EXPECT_NE(TextOf(buffer).find('b'), std::string::npos);
}

TEST(PageFramesTest, HolderLivesAsLongAsTheBytesMayBeRead) {
  const std::string content = Content(5000);
  auto holder = std::make_shared<int>();
  const std::weak_ptr<int> watched = holder;
  auto buffer = std::make_unique<grpc::ByteBuffer>(
      FrameChunk(0, 0, {{AsBytes(content), holder}, {AsBytes(content), holder}}));
  holder.reset();
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(buffer->Dump(&slices).ok());
  buffer.reset();
  EXPECT_FALSE(watched.expired());
  slices.pop_back();
  EXPECT_FALSE(watched.expired());
  slices.clear();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace oscarkv
