// Frames made and read by hand: what protobuf writes and reads, and nothing let go too early.
#include "proto/convert/data_frames.h"

#include <memory>
#include <random>
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

TEST(DataFramesTest, AreWhatProtobufWrites) {
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

TEST(DataFramesTest, NoPartsAreAnEmptyChunk) {
  v1::GetReply reply;
  reply.mutable_chunk();
  EXPECT_EQ(TextOf(FrameChunk(0, 0, {})), reply.SerializeAsString());
}

TEST(DataFramesTest, MessagesAreSerialised) {
  v1::GetReply reply;
  reply.mutable_item()->set_bytes(5);
  reply.mutable_item()->mutable_result()->set_status(v1::CORRUPT);
  EXPECT_EQ(TextOf(FrameMessage(reply)), reply.SerializeAsString());
}

TEST(DataFramesTest, PartsAreNotCopied) {
  std::string content(1 << 16, 'a');
  const grpc::ByteBuffer buffer = FrameChunk(0, 0, Parts(content, 1));
  content[1000] = 'b';
  EXPECT_NE(TextOf(buffer).find('b'), std::string::npos);
}

TEST(DataFramesTest, HolderLivesAsLongAsTheBytesMayBeRead) {
  const std::string content = Content(5000);
  auto holder = std::make_shared<int>();
  const std::weak_ptr<int> watched = holder;
  auto buffer = std::make_unique<grpc::ByteBuffer>(FrameChunk(
      0, 0, std::vector<HeldBytes>{{AsBytes(content), holder}, {AsBytes(content), holder}}));
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

// A message in slices of `bytes` bytes.
grpc::ByteBuffer Sliced(const std::string& text, size_t bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size(); at += bytes) slices.emplace_back(text.substr(at, bytes));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string DataOf(const DataFrame& frame) {
  std::string data(frame.data_bytes(), '?');
  frame.CopyData(reinterpret_cast<std::byte*>(data.data()));
  return data;
}

v1::GetReply ItemWith(const std::string& data) {
  v1::GetReply reply;
  v1::GetItem* item = reply.mutable_item();
  item->set_item(3);
  item->mutable_result()->set_status(v1::OK);
  item->set_bytes(data.size());
  for (uint32_t crc = 1; crc < 300; ++crc) item->add_block_crc32c(crc * 0x01010101);
  item->set_data(data);
  return reply;
}

TEST(DataFramesTest, ItemsWithDataAreWhatProtobufWrites) {
  const std::string content = Content(100'000);
  const v1::GetReply reply = ItemWith(content);
  v1::GetItem head = reply.item();
  head.clear_data();
  EXPECT_TRUE(TextOf(FrameItem(head, Parts(content, 3))) == reply.SerializeAsString());
}

TEST(DataFramesTest, WhatProtobufWritesIsReadInSlicesOfAnySize) {
  const std::string content = Content(3000);
  v1::PutRequest put;
  put.mutable_chunk()->set_item(70'000);
  put.mutable_chunk()->set_offset(uint64_t{1} << 40);
  put.mutable_chunk()->set_data(content);
  v1::PutRequest header;
  header.mutable_header()->add_items()->set_key(content);
  for (const size_t bytes : {1u, 2u, 3u, 7u, 64u, 4096u, 100'000u}) {
    auto frame = DataFrame::OfPutRequest(Sliced(put.SerializeAsString(), bytes));
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_EQ(frame->part(), v1::PutRequest::kChunk);
    EXPECT_EQ(DataOf(*frame), content);
    v1::Chunk chunk;
    ASSERT_TRUE(chunk.ParseFromString(frame->head()));
    EXPECT_EQ(chunk.item(), 70'000u);
    EXPECT_EQ(chunk.offset(), uint64_t{1} << 40);

    frame = DataFrame::OfPutRequest(Sliced(header.SerializeAsString(), bytes));
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_EQ(frame->part(), v1::PutRequest::kHeader);
    EXPECT_EQ(frame->head(), header.header().SerializeAsString());

    const v1::GetReply reply = ItemWith(content);
    frame = DataFrame::OfGetReply(Sliced(reply.SerializeAsString(), bytes));
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_EQ(DataOf(*frame), content);
    v1::GetItem item;
    ASSERT_TRUE(item.ParseFromString(frame->head()));
    EXPECT_EQ(item.block_crc32c_size(), 299);
    EXPECT_TRUE(item.data().empty());
  }
}

TEST(DataFramesTest, FieldsOfLaterVersionsAreLetGoBy) {
  v1::GetReply reply;
  reply.mutable_end()->set_bytes(9);
  // Field 100 as a varint, 8 bytes, 4 bytes and a string.
  std::string text(
      "\xa0\x06\x07\xa1\x06"
      "12345678"
      "\xa5\x06"
      "1234"
      "\xa2\x06\x02"
      "ab",
      24);
  text += reply.SerializeAsString();
  const auto frame = DataFrame::OfGetReply(Sliced(text, 5));
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(frame->part(), v1::GetReply::kEnd);
  EXPECT_EQ(frame->head(), reply.end().SerializeAsString());
}

TEST(DataFramesTest, NothingIsAMessageWithoutAPart) {
  const auto frame = DataFrame::OfGetReply(Sliced("", 1));
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(frame->part(), 0);
}

TEST(DataFramesTest, AbsurdLengthsAreRefused) {
  // A chunk of 2^60 bytes, a chunk whose data is longer than it, a varint without end, a group, two
  // parts.
  const std::string huge("\x12\x80\x80\x80\x80\x80\x80\x80\x80\x10", 10);
  const std::string longer(
      "\x12\x03\x1a\x7f"
      "a",
      5);
  const std::string endless(11, '\xff');
  const std::string group("\x12\x02\x0b\x0c", 4);
  v1::GetReply end;
  end.mutable_end()->set_bytes(1);
  const std::string twice = end.SerializeAsString() + end.SerializeAsString();
  for (const std::string& text : {huge, longer, endless, group, twice}) {
    EXPECT_FALSE(DataFrame::OfGetReply(Sliced(text, 4)).ok());
    EXPECT_FALSE(DataFrame::OfPutRequest(Sliced(text, 4)).ok());
  }
}

// Messages turned over at random: what is read here, protobuf reads as the same; what protobuf
// refuses is never taken for a chunk with other bytes.
TEST(DataFramesTest, AgreesWithProtobufOnDamagedMessages) {
  std::mt19937 random(11);
  v1::PutRequest put;
  put.mutable_chunk()->set_item(5);
  put.mutable_chunk()->set_offset(1 << 20);
  put.mutable_chunk()->set_data(Content(40));
  const std::string sound = put.SerializeAsString();
  int read = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = sound;
    for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
      const size_t at = random() % text.size();
      if (random() % 4 == 0) {
        text.resize(at + 1);
      } else {
        text[at] = static_cast<char>(random());
      }
    }
    const auto frame = DataFrame::OfPutRequest(Sliced(text, 1 + random() % 9));
    v1::PutRequest known;
    if (!frame.ok() || frame->part() != v1::PutRequest::kChunk) continue;
    v1::Chunk chunk;
    if (!chunk.ParseFromString(frame->head())) continue;
    ++read;
    ASSERT_TRUE(known.ParseFromString(text)) << round;
    EXPECT_EQ(known.chunk().item(), chunk.item());
    EXPECT_EQ(known.chunk().offset(), chunk.offset());
    EXPECT_EQ(known.chunk().data(), DataOf(*frame));
  }
  EXPECT_GT(read, 1000);
}

}  // namespace
}  // namespace oscarkv
