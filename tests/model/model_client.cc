#include "tests/model/model_client.h"

#include <algorithm>
#include <span>
#include <utility>

#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

constexpr size_t kCopiesMax = 4;

}  // namespace

RequestTraits SomeTraits(Random& random) {
  return {.number = random.Below(40),
          .new_tokens = random.Below(20'000),
          .output_tokens = static_cast<uint32_t>(random.Below(600)),
          .reuse = static_cast<ReuseHint>(random.Below(kReuseHints)),
          .residency = !random.OneIn(4)   ? Residency::kUnspecified
                       : !random.OneIn(2) ? Residency::kPinned
                                          : static_cast<Residency>(random.Below(3)),
          .priority = static_cast<int8_t>(random.Below(5) - 2)};
}

void ModelClient::LetGoOfHeld() {
  held_.clear();
  puts_.clear();
  held_copies_.clear();
}

void ModelClient::LetGo() {
  if (held_.empty()) return;
  std::swap(held_[random_.Below(held_.size())], held_.back());
  HeldPage& held = held_.back();
  // Deleted, evicted, cleared, stored anew: the bytes are those of the pin.
  const auto bytes = held.page.VerifiedPage();
  if (bytes.ok()) {
    EXPECT_TRUE(VersionOf(*bytes, held.page.meta().encoding, {held.version}).has_value())
        << "the bytes changed under a reader";
  } else {
    EXPECT_NE(held.flips, world_.flips()) << bytes.status();
  }
  held_.pop_back();
}

std::optional<Version> ModelClient::VersionOf(ByteView bytes, Encoding encoding,
                                              const std::set<Version>& allowed) const {
  for (const Version& version : allowed) {
    if (version.encoding == encoding &&
        std::ranges::equal(bytes, MakePage(world_.space(), encoding, version.seed).bytes))
      return version;
    const TestPage* packed = encoding == Encoding::kPacked ? ReEncodedFormOf(version) : nullptr;
    if (packed != nullptr && std::ranges::equal(bytes, packed->bytes)) return version;
  }
  return std::nullopt;
}

bool ModelClient::MayExist(const Version& stored, const Version& put, bool rotten) const {
  return stored.encoding != put.encoding || stored.seed == put.seed || rotten ||
         ReEncodedFormOf(stored) != nullptr;
}

bool ModelClient::MayConflict(const Version& stored, const Version& put) const {
  if (stored.encoding == put.encoding) return stored.seed != put.seed;
  return put.encoding == Encoding::kPacked && ReEncodedFormOf(stored) != nullptr;
}

void ModelClient::HoldCopy(PinnedCopy copy, std::set<Version> versions) {
  held_copies_.push_back({std::move(copy), std::move(versions)});
  CheckCopy(held_copies_.back());
  // Whatever becomes of the page, now or later.
  const size_t other = random_.Below(held_copies_.size());
  CheckCopy(held_copies_[other]);
  if (held_copies_.size() < kCopiesMax) return;
  std::swap(held_copies_[other], held_copies_.back());
  held_copies_.pop_back();
}

void ModelClient::CheckCopy(const HeldCopy& held) {
  std::vector<std::byte> bytes(held.copy.slot().bytes);
  auto pending = world_.gpu()->CopyOut(held.copy.slot(), bytes);
  if (!pending.ok() || !(*pending)->Wait().ok()) return;  // an injected fault
  ++copies_checked_;
  EXPECT_TRUE(std::ranges::any_of(held.versions, [&](const Version& version) {
    const auto holds = [&](const TestPage& page) {
      return page.bytes.size() <= bytes.size() &&
             std::ranges::equal(page.bytes, std::span(bytes).first(page.bytes.size()));
    };
    const TestPage* packed = ReEncodedFormOf(version);
    return holds(MakePage(world_.space(), version.encoding, version.seed)) ||
           (packed != nullptr && holds(*packed));
  })) << "wrong bytes in a copy";
}

}  // namespace oscarkv::testing
