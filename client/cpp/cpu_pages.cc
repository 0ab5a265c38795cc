#include "client/cpp/cpu_pages.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::client {

absl::Status CpuPageSink::Begin(BlockRange, BlockRange heads) {
  heads_ = heads;
  return absl::OkStatus();
}

absl::StatusOr<MutableByteView> CpuPageSink::Room(uint32_t page, Encoding encoding,
                                                  BlockRange layers, uint64_t bytes) {
  page_ = page;
  encoding_ = encoding;
  layers_ = layers;
  bytes_.resize(bytes);
  return MutableByteView(bytes_);
}

absl::Status CpuPageSink::Take(std::span<const uint32_t> block_crc32c) {
  return TakeFrom(page_, encoding_, layers_, bytes_, block_crc32c);
}

absl::Status CpuPageSink::TakeFrom(uint32_t page, Encoding encoding, BlockRange layers,
                                   ByteView bytes, std::span<const uint32_t> block_crc32c) {
  const uint32_t page_tokens = codec_.geometry().page_tokens;
  DecodeItem item{.encoding = encoding,
                  .layers = layers,
                  .heads = heads_,
                  .slots = slots_.subspan(size_t{page} * page_tokens, page_tokens),
                  .bytes = bytes,
                  .block_crc32c = block_crc32c,
                  .result = {}};
  OSCARKV_RETURN_IF_ERROR(codec_.Decode({&item, 1}, codec_.engine_basis(), cache_));
  return item.result;
}

absl::StatusOr<std::span<const EncodedPage>> CpuPageSource::Encode(
    uint32_t first, std::span<const Encoding> encodings, EncodeReport* report) {
  const uint32_t page_tokens = codec_.geometry().page_tokens;
  buffers_.clear();
  encoded_.clear();
  uint64_t bytes = 0;
  for (size_t i = 0; i < encodings.size(); ++i) {
    const uint64_t page_bytes = codec_.layout(encodings[i]).page_bytes();
    if (i > 0 && bytes + page_bytes > bytes_max_) break;
    bytes += page_bytes;
    // Pages are multiples of 64 bytes. One that does not fit into the room, alone, goes elsewhere.
    const bool fits = bytes <= room_.size();
    if (i > 0 && !room_.empty() && !fits) break;
    Buffer buffer{std::vector<std::byte>(fits ? 0 : page_bytes),
                  std::vector<uint32_t>(codec_.geometry().blocks())};
    const MutableByteView place =
        fits ? room_.subspan(bytes - page_bytes, page_bytes) : MutableByteView(buffer.bytes);
    const size_t page = first + i;
    const EncodeItem item{.encoding = encodings[i],
                          .slots = slots_.subspan(page * page_tokens, page_tokens),
                          .page = place,
                          .block_crc32c = buffer.block_crc32c};
    OSCARKV_RETURN_IF_ERROR(
        Annotate(codec_.Encode(cache_, {&item, 1}, report), absl::StrCat("page ", page)));
    encoded_.push_back({encodings[i], place, buffer.block_crc32c});
    buffers_.push_back(std::move(buffer));  // what the views point to stays where it is
  }
  return std::span<const EncodedPage>(encoded_);
}

}  // namespace oscarkv::client
