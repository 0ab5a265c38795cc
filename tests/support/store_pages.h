// Small namespaces and pages for tests of the store: the content of a page is a function of a seed,
// so that a reader can tell whose page it has.
#ifndef OSCARKV_TESTS_SUPPORT_STORE_PAGES_H_
#define OSCARKV_TESTS_SUPPORT_STORE_PAGES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/codec/page_codec.h"
#include "kernels/codec/page_layout.h"
#include "server/core/page_store.h"

namespace oscarkv::testing {

// 2 layers, 2 heads, 4 tokens a page, head dim 16, 4 bits for K, PACKED from position 0 on, a tail
// of two pages. A WIDE block is 256 bytes without padding; a PACKED block is 128, of which 80 are
// content.
NamespaceSpec SmallSpec(std::string_view model = "small");

// 32 bytes that depend on `number`.
std::string KeyOf(uint64_t number);

struct TestPage {
  std::vector<std::byte> bytes;
  std::vector<uint32_t> crcs;
};
// A page of random blocks made from `seed`, padding zero, checksums right. The values of a WIDE
// page are between 0.5 and 2, or their negatives.
TestPage MakePage(const Namespace& space, Encoding encoding, uint64_t seed);
// A page that cannot be held PACKED: a value of it is infinite.
TestPage MakeInfinitePage(const Namespace& space, uint64_t seed);

// Plain Hadamard transforms for the namespace's geometry.
std::unique_ptr<PageCodec> MakeCodec(const Namespace& space);
// What a WIDE page becomes when it is re-encoded.
TestPage PackedFormOf(const PageCodec& codec, const TestPage& wide);

struct TestItem {
  std::string key;
  std::string parent;
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kWide;
  uint64_t seed = 0;
};
// A chain of `count` pages with keys of first_key, first_key + 1, ..., that extends `parent`.
std::vector<TestItem> Chain(const Namespace& space, uint64_t first_key, uint32_t count,
                            Encoding encoding = Encoding::kWide);

PutItem AsPutItem(const TestItem& item, const TestPage& page);
// As the services begin puts: after what the page extends has been brought back from the archive.
BeginPutResult BeginPut(PageStore& store, const Namespace& space, const PutItem& item);
// BeginPut, the bytes, Commit.
ItemResult PutPage(PageStore& store, const Namespace& space, const TestItem& item);
ItemStatus PutChain(PageStore& store, const Namespace& space, const std::vector<TestItem>& items);

// kOk when the page is there and its bytes are those of `item`; otherwise what the store said.
// Fails the test when the bytes are others.
ItemStatus ReadPage(PageStore& store, const Namespace& space, const TestItem& item);

// Leading pages present.
uint32_t PrefixPages(PageStore& store, const Namespace& space, const std::vector<TestItem>& items);

std::vector<std::string_view> KeysOf(const std::vector<TestItem>& items);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_STORE_PAGES_H_
