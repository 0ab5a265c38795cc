// Whole pages, for tests: encoding, decoding and cutting them.
#ifndef OSCARKV_TESTS_CODEC_PAGE_TESTING_H_
#define OSCARKV_TESTS_CODEC_PAGE_TESTING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"

#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/engine_cache.h"

namespace oscarkv::testing {

struct EncodedPage {
  Bytes bytes;
  std::vector<uint32_t> crcs;
  EncodeReport report;
};

// Fails the test when the call does. The buffer holds `before` first.
EncodedPage EncodePage(const PageCodec& codec, Encoding encoding, EngineCache& source,
                       const std::vector<int64_t>& slots, std::byte before = std::byte{0x3c});

// The call's error, or the item's.
absl::Status DecodePage(const PageCodec& codec, Encoding encoding, const EncodedPage& page,
                        DecodeBasis basis, EngineCache& destination,
                        const std::vector<int64_t>& slots);

// An item for the whole page; borrows `page` and `slots`.
DecodeItem WholeItem(const PageCodec& codec, Encoding encoding, const EncodedPage& page,
                     const std::vector<int64_t>& slots);

// The blocks of a range, as a partial read returns them.
EncodedPage CutPart(const PageLayout& layout, const EncodedPage& page, BlockRange layers,
                    BlockRange heads);

std::shared_ptr<const TransformSet> IdentitySet(const Geometry& geometry, float k_clip,
                                                float v_clip);
// A random rotation for each layer, head and side, each another one, with offsets.
std::shared_ptr<const TransformSet> RotationSet(const Geometry& geometry, float clip);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CODEC_PAGE_TESTING_H_
