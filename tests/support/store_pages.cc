#include "tests/support/store_pages.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "kernels/base/sha256.h"
#include "server/core/parent_loader.h"

namespace oscarkv::testing {

namespace {

// bf16 with exponents of 2^-1 and 2^0.
void MakeOrdinary(MutableByteView block) {
  for (size_t i = 1; i < block.size(); i += 2)
    block[i] = (block[i] & std::byte{0x80}) | std::byte{0x3f};
}

}  // namespace

NamespaceSpec SmallSpec(std::string_view model) {
  NamespaceSpec spec;
  spec.model = std::string(model);
  spec.geometry = {.layers = 2,
                   .kv_heads = 2,
                   .k_head_dim = 16,
                   .v_head_dim = 16,
                   .page_tokens = 4,
                   .dtype = DType::kBf16};
  spec.codec.bits = {{.k = 4, .v = 2}};
  spec.codec.transform_hash = std::string(32, 'T');
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = 8;
  return spec;
}

std::string KeyOf(uint64_t number) { return Sha256Of(AsBytes(absl::StrCat("key ", number))); }

TestPage MakePage(const Namespace& space, Encoding encoding, uint64_t seed) {
  const PageLayout& layout = space.layout(encoding);
  const Geometry& geometry = layout.geometry();
  TestPage page{std::vector<std::byte>(layout.page_bytes()), {}};
  std::mt19937_64 random(seed * 2 + (encoding == Encoding::kWide ? 0 : 1));
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      const MutableByteView block =
          MutableByteView(page.bytes)
              .subspan(layout.block_offset(layer, head), layout.block(layer).bytes);
      for (size_t i = 0; i < block.size(); i += 8) {
        const uint64_t word = random();
        std::memcpy(&block[i], &word, std::min<size_t>(8, block.size() - i));
      }
      if (encoding == Encoding::kWide) MakeOrdinary(block);
      page.crcs.push_back(Crc32c(block));
    }
  }
  return page;
}

TestPage MakeInfinitePage(const Namespace& space, uint64_t seed) {
  TestPage page = MakePage(space, Encoding::kWide, seed);
  const uint16_t infinity = 0x7f80;  // as bf16
  std::memcpy(page.bytes.data(), &infinity, sizeof(infinity));
  page.crcs[0] = Crc32c(ByteView(page.bytes).first(space.layout(Encoding::kWide).block(0).bytes));
  return page;
}

std::unique_ptr<PageCodec> MakeCodec(const Namespace& space) {
  const Geometry& geometry = space.spec().geometry;
  auto set = MakeHadamardTransformSet(geometry, 0.0f, 0.0f);
  return *MakePageCodec(CodecBackend::kCpu, geometry, space.spec().codec,
                        std::make_shared<const TransformSet>(*std::move(set)));
}

TestPage PackedFormOf(const PageCodec& codec, const TestPage& wide) {
  const Geometry& geometry = codec.geometry();
  std::vector<std::byte> source = wide.bytes;
  std::vector<std::byte*> bases(2 * geometry.layers);
  std::vector<int64_t> slots(geometry.page_tokens);
  std::iota(slots.begin(), slots.end(), 0);
  TestPage page{std::vector<std::byte>(codec.layout(Encoding::kPacked).page_bytes()),
                std::vector<uint32_t>(geometry.blocks())};
  const EncodeItem item{
      .encoding = Encoding::kPacked, .slots = slots, .page = page.bytes, .block_crc32c = page.crcs};
  EncodeReport report;
  EXPECT_TRUE(
      codec.Encode(WidePageView(codec.layout(Encoding::kWide), source, bases), {&item, 1}, &report)
          .ok());
  return page;
}

std::vector<TestItem> Chain(const Namespace& space, uint64_t first_key, uint32_t count,
                            Encoding encoding) {
  std::vector<TestItem> items;
  for (uint32_t i = 0; i < count; ++i) {
    items.push_back({.key = KeyOf(first_key + i),
                     .parent = i == 0 ? "" : items.back().key,
                     .first_position = uint64_t{i} * space.page_tokens(),
                     .encoding = encoding,
                     .seed = first_key + i});
  }
  return items;
}

PutItem AsPutItem(const TestItem& item, const TestPage& page) {
  return {.key = item.key,
          .parent = item.parent,
          .first_position = item.first_position,
          .encoding = item.encoding,
          .bytes = page.bytes.size(),
          .block_crcs = page.crcs};
}

BeginPutResult BeginPut(PageStore& store, const Namespace& space, const PutItem& item) {
  std::optional<ParentLoader> loader;
  if (store.ParentIsArchived(space, item)) {
    loader.emplace(store, space, item.parent);
    while (loader->Step()) {
    }
    if (loader->busy()) return {{ItemStatus::kBusy, "its parent is on disk"}, PutSlot()};
  }
  return store.BeginPut(space, item);
}

ItemResult PutPage(PageStore& store, const Namespace& space, const TestItem& item) {
  const TestPage page = MakePage(space, item.encoding, item.seed);
  BeginPutResult begun = BeginPut(store, space, AsPutItem(item, page));
  if (!begun.result.ok()) return begun.result;
  std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
  return begun.slot.Commit();
}

ItemStatus PutChain(PageStore& store, const Namespace& space, const std::vector<TestItem>& items) {
  for (const TestItem& item : items) {
    const ItemStatus status = PutPage(store, space, item).status;
    if (status != ItemStatus::kOk && status != ItemStatus::kExists) return status;
  }
  return ItemStatus::kOk;
}

ItemStatus ReadPage(PageStore& store, const Namespace& space, const TestItem& item) {
  PinResult pin = store.Pin(space, item.key);
  if (pin.status != ItemStatus::kOk) return pin.status;
  const absl::StatusOr<ByteView> bytes = pin.page.VerifiedPage();
  if (!bytes.ok()) return ItemStatus::kCorrupt;
  const TestPage expected = MakePage(space, pin.page.meta().encoding, item.seed);
  EXPECT_TRUE(std::ranges::equal(*bytes, expected.bytes)) << "wrong bytes for seed " << item.seed;
  EXPECT_EQ(pin.page.meta().first_position, item.first_position);
  return ItemStatus::kOk;
}

uint32_t PrefixPages(PageStore& store, const Namespace& space, const std::vector<TestItem>& items) {
  const std::vector<std::string_view> keys = KeysOf(items);
  return store.Lookup(space, {.keys = keys}).prefix_pages;
}

std::vector<std::string_view> KeysOf(const std::vector<TestItem>& items) {
  std::vector<std::string_view> keys;
  for (const TestItem& item : items) keys.emplace_back(item.key);
  return keys;
}

}  // namespace oscarkv::testing
