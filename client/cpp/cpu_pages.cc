#include "client/cpp/cpu_pages.h"

#include <algorithm>
#include <memory>
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
  const uint32_t blocks = codec_.geometry().blocks();
  // As many as fit: pages are multiples of 64 bytes. One that does not fit into the room, alone,
  // goes elsewhere.
  const uint64_t most = room_.empty() ? bytes_max_ : std::min<uint64_t>(bytes_max_, room_.size());
  uint64_t bytes = 0;
  size_t count = 0;
  for (; count < encodings.size(); ++count) {
    const uint64_t page_bytes = codec_.layout(encodings[count]).page_bytes();
    if (count > 0 && bytes + page_bytes > most) break;
    bytes += page_bytes;
  }
  // Pages are sent from where they are encoded to: memory of their own for each batch, as the one
  // before may still be on its way. Encoding writes all of it, padding too.
  const bool in_room = bytes <= room_.size();
  const auto memory = in_room ? nullptr : std::make_shared_for_overwrite<std::byte[]>(bytes);
  MutableByteView left = in_room ? room_ : MutableByteView(memory.get(), bytes);
  block_crc32c_.resize(count * blocks);
  encoded_.clear();
  for (size_t i = 0; i < count; ++i) {
    const MutableByteView page = left.first(codec_.layout(encodings[i]).page_bytes());
    left = left.subspan(page.size());
    const std::span<uint32_t> crcs = std::span(block_crc32c_).subspan(i * blocks, blocks);
    const EncodeItem item{.encoding = encodings[i],
                          .slots = slots_.subspan((first + i) * page_tokens, page_tokens),
                          .page = page,
                          .block_crc32c = crcs};
    OSCARKV_RETURN_IF_ERROR(
        Annotate(codec_.Encode(cache_, {&item, 1}, report), absl::StrCat("page ", first + i)));
    encoded_.push_back({encodings[i], page, crcs, memory});
  }
  return std::span<const EncodedPage>(encoded_);
}

}  // namespace oscarkv::client
