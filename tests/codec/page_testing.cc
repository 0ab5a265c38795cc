#include "tests/codec/page_testing.h"

#include <utility>

#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::testing {

EncodedPage EncodePage(const PageCodec& codec, Encoding encoding, EngineCache& source,
                       const std::vector<int64_t>& slots, std::byte before) {
  EncodedPage page{Bytes(codec.layout(encoding).page_bytes(), before),
                   std::vector<uint32_t>(codec.geometry().blocks()),
                   {}};
  const EncodeItem item{
      .encoding = encoding, .slots = slots, .page = page.bytes, .block_crc32c = page.crcs};
  EXPECT_OK(codec.Encode(source.View(), {&item, 1}, &page.report));
  return page;
}

DecodeItem WholeItem(const PageCodec& codec, Encoding encoding, const EncodedPage& page,
                     const std::vector<int64_t>& slots) {
  return {.encoding = encoding,
          .layers = {0, codec.geometry().layers},
          .heads = {0, codec.geometry().kv_heads},
          .slots = slots,
          .bytes = page.bytes,
          .block_crc32c = page.crcs,
          .result = {}};
}

absl::Status DecodePage(const PageCodec& codec, Encoding encoding, const EncodedPage& page,
                        DecodeBasis basis, EngineCache& destination,
                        const std::vector<int64_t>& slots) {
  DecodeItem item = WholeItem(codec, encoding, page, slots);
  const absl::Status status = codec.Decode({&item, 1}, basis, destination.View());
  return status.ok() ? item.result : status;
}

EncodedPage CutPart(const PageLayout& layout, const EncodedPage& page, BlockRange layers,
                    BlockRange heads) {
  EncodedPage part;
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    for (uint32_t head = heads.first; head < heads.first + heads.count; ++head) {
      const auto block =
          page.bytes.begin() + static_cast<std::ptrdiff_t>(layout.block_offset(layer, head));
      part.bytes.insert(part.bytes.end(), block,
                        block + static_cast<std::ptrdiff_t>(layout.block(layer).stride));
      part.crcs.push_back(page.crcs[layer * layout.geometry().kv_heads + head]);
    }
  }
  return part;
}

std::shared_ptr<const TransformSet> IdentitySet(const Geometry& geometry, float k_clip,
                                                float v_clip) {
  auto set = MakeIdentityTransformSet(geometry, k_clip, v_clip);
  EXPECT_OK(set);
  return std::make_shared<const TransformSet>(*std::move(set));
}

std::shared_ptr<const TransformSet> RotationSet(const Geometry& geometry, float clip) {
  std::vector<LayerTransform> layers(geometry.layers);
  uint64_t seed = 1;
  for (LayerTransform& layer : layers) {
    layer.k_method = layer.v_method = "random";
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      layer.k.push_back(RandomRotation(geometry.k_head_dim, seed++));
      layer.v.push_back(RandomRotation(geometry.v_head_dim, seed++));
      for (SideTransform* side : {&layer.k.back(), &layer.v.back()}) {
        side->clip_ratio = clip;
        if (clip > 0.0f) {
          for (uint32_t i = 0; i < side->dim; ++i)
            side->offset[i] = 0.25f * static_cast<float>((i + seed) % 5) - 0.5f;
        }
      }
    }
  }
  auto set = TransformSet::Create(std::move(layers), geometry.kv_heads);
  EXPECT_OK(set);
  return std::make_shared<const TransformSet>(*std::move(set));
}

}  // namespace oscarkv::testing
