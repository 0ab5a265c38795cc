#include "tests/model/threaded_client.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kSeeds = 3;  // of the bytes of a page
static_assert(kSeeds <= kPageSeeds);

}  // namespace

std::span<const ThreadedClient::Operation> ThreadedClient::Operations() {
  static constexpr Operation kOperations[] = {
      {30, &ThreadedClient::BeginPut},    {26, &ThreadedClient::FinishPut},
      {24, &ThreadedClient::Fetch},       {8, &ThreadedClient::LetGo},
      {6, &ThreadedClient::Lookup},       {5, &ThreadedClient::TakeLease},
      {3, &ThreadedClient::ReleaseLease}, {8, &ThreadedClient::Touch},
      {3, &ThreadedClient::Delete},       {1, &ThreadedClient::EndSession},
      {8, &ThreadedClient::ReadCopy},
  };
  return kOperations;
}

ThreadedClient::ThreadedClient(World& world, const Book& universe, History& history, uint64_t seed)
    : ModelClient(world, seed), universe_(universe), history_(history) {}

void ThreadedClient::Step() {
  int weights = 0;
  for (const Operation& operation : Operations()) weights += operation.weight;
  auto draw = static_cast<int>(random_.Below(static_cast<size_t>(weights)));
  for (const Operation& operation : Operations()) {
    draw -= operation.weight;
    if (draw < 0) return (this->*operation.run)();
  }
}

void ThreadedClient::LetGoOfAll() {
  LetGoOfHeld();
  leases_.clear();
}
void ThreadedClient::CloseSession() {
  ASSERT_TRUE(store().CloseSession(session_));
  leases_.clear();
}
void ThreadedClient::EndSession() {
  CloseSession();
  OpenSession();
}

// --- Puts ---

void ThreadedClient::BeginPut() {
  if (puts_.size() >= kPutsMax) return FinishPut();
  const Node node = Any();
  const Version version{random_.Below(kSeeds),
                        random_.OneIn(2) ? Encoding::kWide : Encoding::kPacked};
  TestItem wanted = universe_.at(node).item;
  wanted.encoding = version.encoding;
  const TestPage page = MakePage(world_.space(), version.encoding, version.seed);
  PutItem item = AsPutItem(wanted, page);
  item.request = SomeTraits(random_);
  item.ends_put = random_.OneIn(3);
  const uint64_t flips = world_.flips();
  const bool rotten = world_.rotten();
  const Tick begun = history_.Now();
  BeginPutResult answer = store().BeginPut(world_.space(), item);
  CheckPutAnswer(node, version, answer.result.status, begun, rotten, false);
  if (!answer.result.ok()) return;
  std::memcpy(answer.slot.bytes().data(), page.bytes.data(), page.bytes.size());
  const bool spoiled = random_.OneIn(10);
  if (spoiled) answer.slot.bytes()[random_.Below(64)] ^= std::byte{4};
  puts_.push_back({std::move(answer.slot), node, version, spoiled, flips});
}

// What BeginPut and Commit may say, given what may be there.
void ThreadedClient::CheckPutAnswer(Node node, const Version& version, ItemStatus status,
                                    Tick begun, bool rotten, bool may_be_corrupt) {
  const std::set<Version> there = history_.MayBe(node, begun);
  if (status == ItemStatus::kExists) {
    EXPECT_TRUE(std::ranges::any_of(
        there, [&](const Version& stored) { return MayExist(stored, version, rotten); }))
        << "page " << node << " is said to exist";
  } else if (status == ItemStatus::kConflict) {
    EXPECT_TRUE(std::ranges::any_of(
        there, [&](const Version& stored) { return MayConflict(stored, version); }))
        << "page " << node << " is said to be another";
  } else if (status == ItemStatus::kSkipped) {
    EXPECT_TRUE(universe_.at(node).parent.has_value());
  } else {
    EXPECT_TRUE(status == ItemStatus::kOk || status == ItemStatus::kNoSpace ||
                status == ItemStatus::kQuota || status == ItemStatus::kBusy ||
                (status == ItemStatus::kCorrupt && may_be_corrupt))
        << ItemStatusName(status);
  }
}

void ThreadedClient::FinishPut() {
  if (puts_.empty()) return;
  std::swap(puts_[random_.Below(puts_.size())], puts_.back());
  OpenPut put = std::move(puts_.back());
  puts_.pop_back();
  if (random_.OneIn(8)) return;  // the client died
  const bool rotten = world_.rotten();
  const bool damaged = put.spoiled || put.flips != world_.flips();
  const Tick begun = history_.Now();
  History::Put recorded(history_, put.node, put.version);
  const ItemStatus status = put.slot.Commit().status;
  recorded.End(status == ItemStatus::kOk);
  CheckPutAnswer(put.node, put.version, status, begun, rotten, damaged);
  // A bit that flips may be the one that was spoiled.
  EXPECT_TRUE(status != ItemStatus::kOk || !put.spoiled || put.flips != world_.flips());
}

// --- Reads ---

void ThreadedClient::CheckNotLeased(Node node) const {
  for (const Lease& lease : leases_) {
    // What has rotted is dropped, leased or not.
    const bool sound = !lease.rotten && lease.flips == world_.flips();
    if (!sound || lease.end <= world_.clock().Now()) continue;
    for (const LeasedPage& page : lease.pages) {
      EXPECT_FALSE(page.node == node && page.removals == history_.removals_begun(node))
          << "page " << node << " is leased and not there";
    }
  }
}

void ThreadedClient::Fetch() {
  const std::vector<Node> path = universe_.PathTo(Any());
  const std::vector<std::string_view> keys = universe_.KeysAt(path);
  const size_t first = random_.Below(path.size());
  const Node node = path[first];
  const bool rotten = world_.rotten();
  const uint64_t flips = world_.flips();
  const Tick begun = history_.Now();
  PinResult pin = store().Pin(world_.space(), keys[first]);
  if (pin.archived)
    pin = store().Load(world_.space(), std::span<const std::string_view>(keys).subspan(first));
  const std::set<Version> allowed = history_.MayBe(node, begun);
  if (pin.status != ItemStatus::kOk) {
    CheckNotLeased(node);
    // Without a disk there is one place to look.
    if (!world_.has_disk()) history_.Absent(node, begun);
    return;
  }
  const auto bytes = pin.page.VerifiedPage();
  if (!bytes.ok()) {
    EXPECT_TRUE(rotten) << bytes.status();
    return;
  }
  const std::optional<Version> version = VersionOf(*bytes, pin.page.meta().encoding, allowed);
  EXPECT_TRUE(version.has_value())
      << "page " << node << ": " << (allowed.empty() ? "it can not be there" : "wrong bytes")
      << " for who asked at " << begun << ":" << history_.Describe(node);
  EXPECT_EQ(pin.page.meta().first_position, universe_.at(node).item.first_position);
  ++pages_checked_;
  if (version.has_value() && random_.OneIn(3) && held_.size() < kHeldMax)
    held_.push_back({std::move(pin.page), *version, flips});
}

void ThreadedClient::LookUp(bool lease) {
  const std::vector<Node> path = universe_.PathTo(Any());
  const std::vector<std::string_view> keys = universe_.KeysAt(path);
  const absl::Duration life = absl::Seconds(1 + random_.Below(60));
  Lease granted{.lease = 0,
                .end = world_.clock().Now() + std::min(life, absl::Seconds(50)),
                .rotten = world_.rotten(),
                .flips = world_.flips(),
                .pages = {}};
  for (const Node node : path) granted.pages.push_back({node, history_.removals_ended(node)});
  const Tick begun = history_.Now();
  const LookupResult found =
      store().Lookup(world_.space(),
                     {.keys = keys, .lease_session = lease ? session_ : 0, .lease_duration = life});
  EXPECT_EQ(found.pages.size(), found.prefix_pages);
  for (size_t i = 0; i < found.prefix_pages; ++i) {
    EXPECT_FALSE(history_.MayBe(path[i], begun).empty())
        << "page " << path[i] << ": it can not be there";
  }
  if (found.prefix_pages < path.size()) CheckNotLeased(path[found.prefix_pages]);
  if (found.lease == 0) return;
  granted.lease = found.lease;
  // Only pages found in memory are leased.
  granted.pages.resize(found.prefix_pages);
  for (size_t i = found.prefix_pages; i-- > 0;) {
    if (found.pages[i].meta.tier == TierKind::kDisk)
      granted.pages.erase(granted.pages.begin() + static_cast<std::ptrdiff_t>(i));
  }
  leases_.push_back(std::move(granted));
}

void ThreadedClient::ReleaseLease() {
  if (leases_.empty()) return;
  std::swap(leases_[random_.Below(leases_.size())], leases_.back());
  const ItemStatus status = store().ReleaseLease(leases_.back().lease);
  EXPECT_TRUE(status == ItemStatus::kOk || leases_.back().end <= world_.clock().Now());
  leases_.pop_back();
}

// --- Others ---

void ThreadedClient::Touch() {
  store().Touch(world_.space(), universe_.KeysAt(universe_.PathTo(Any())), SomeTraits(random_));
}

void ThreadedClient::Delete() {
  const Node node = Any();
  const std::string_view key = universe_.at(node).item.key;
  const Tick begun = history_.Now();
  History::Removal removal(history_, node);
  const ItemStatus status = store().Delete(world_.space(), {&key, 1})[0];
  EXPECT_TRUE(status != ItemStatus::kOk || !history_.MayBe(node, begun).empty());
  removal.End();
}

void ThreadedClient::ReadCopy() {
  if (world_.gpu() == nullptr) return;
  const Node node = Any();
  const Tick begun = history_.Now();
  const PinResult pin = store().Pin(world_.space(), universe_.at(node).item.key);
  if (pin.status != ItemStatus::kOk) return;
  PinnedCopy copy = store().PinCopy(pin.page);
  if (copy) HoldCopy(std::move(copy), history_.MayBe(node, begun));
}

}  // namespace oscarkv::testing
