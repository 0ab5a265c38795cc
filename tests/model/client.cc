#include "tests/model/client.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace oscarkv::testing {
std::span<const Client::Operation> Client::Operations() {
  static constexpr Operation kOperations[] = {
      {"begin a put", 30, &Client::BeginPut},
      {"finish a put", 26, &Client::FinishPut},
      {"fetch", 14, &Client::Fetch},
      {"let go of a page", 6, &Client::LetGo},
      {"lookup", 6, &Client::Lookup},
      {"lease", 5, &Client::Lease},
      {"release a lease", 3, &Client::ReleaseLease},
      {"touch", 12, &Client::Touch},
      {"delete", 2, &Client::Delete},
      {"end the session", 1, &Client::EndSession},
      {"drop all puts", 1, &Client::DropPuts},
      {"read a copy", 8, &Client::ReadCopy},
  };
  return kOperations;
}

Client::Client(World& world, Book& book, uint64_t seed) : ModelClient(world, seed), book_(book) {}

void Client::Step() {
  const std::span<const Operation> operations = Operations();
  int weights = 0;
  for (const Operation& operation : operations) weights += operation.weight;
  auto draw = static_cast<int>(random_.Below(static_cast<size_t>(weights)));
  for (const Operation& operation : operations) {
    draw -= operation.weight;
    if (draw < 0) {
      Tell("client ", session_, ": ", operation.name);
      const uint64_t ahead = store().Stats().ladder.evicted_ahead;
      (this->*operation.run)();
      return CheckBitsWentFirst(ahead);
    }
  }
}

void Client::CheckBitsWentFirst(uint64_t before) {
  // Of what a quota takes, pages may be too many whatever they are.
  if (world_.profile().quotas || store().Stats().ladder.evicted_ahead == before) return;
  ASSERT_GE(world_.clock().Now() - world_.re_encoded_at(), absl::Seconds(1))
      << "a page went although pages are being re-encoded";
}

void Client::CloseSession() {
  ASSERT_TRUE(store().CloseSession(session_));
  book_.EndLeasesOf(session_);
}

// --- Puts ---

void Client::BeginPut() {
  const Book::Node node = book_.ToPut(random_);
  const Version version{random_.Below(kPageSeeds),
                        random_.OneIn(2) ? Encoding::kWide : Encoding::kPacked};
  TestItem wanted = book_.at(node).item;
  wanted.encoding = version.encoding;
  const TestPage page = MakePage(world_.space(), version.encoding, version.seed);
  PutItem item = AsPutItem(wanted, page);
  item.request = SomeTraits(random_);
  item.ends_put = random_.OneIn(3);
  const bool extendable = MustExtend(node);
  const uint64_t changes = book_.changes();
  const uint64_t obstacles = Obstacles();
  book_.SetBusy(book_.at(node).parent);
  BeginPutResult begun = testing::BeginPut(store(), world_.space(), item);
  book_.SetBusy(std::nullopt);
  CheckPutAnswer(node, version, begun.result.status, false);
  const bool alone = changes == book_.changes() && obstacles == Obstacles();
  // Room for what comes back may be made of a page that it extends, and that is nowhere else.
  ASSERT_TRUE(begun.result.status != ItemStatus::kSkipped || !extendable || !alone ||
              !MustExtend(node))
      << "page " << node << ": what it extends is stored, but " << begun.result.message;
  if (!begun.result.ok()) return;
  std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
  const bool spoiled = random_.OneIn(10);
  if (spoiled) begun.slot.bytes()[random_.Below(64)] ^= std::byte{4};
  puts_.push_back({std::move(begun.slot), node, version, spoiled, world_.flips()});
}

// Whether all that the page extends is stored, in memory or on disk: unless there is an obstacle,
// or somebody else does something about it, a put is not kSkipped.
bool Client::MustExtend(Book::Node node) {
  if (world_.rotten()) return false;
  const std::vector<std::string_view> path = book_.KeysAt(book_.PathTo(node));
  const auto above = std::span(path).first(path.size() - 1);
  return store().Lookup(world_.space(), {.keys = above}).prefix_pages == above.size();
}

// What may keep a page on disk from coming back: no memory for it, or for it and all that it
// extends, a device that fails, a bad page.
uint64_t Client::Obstacles() {
  const StoreStats stats = store().Stats();
  return stats.counters.parent_loads[static_cast<size_t>(ParentLoad::kNoRoom)] +
         stats.counters.parent_loads[static_cast<size_t>(ParentLoad::kTooLong)] +
         stats.archive.failed_reads + stats.archive.corrupt_pages;
}

// What BeginPut and Commit may say, given what is known.
void Client::CheckPutAnswer(Book::Node node, const Version& version, ItemStatus status,
                            bool may_be_corrupt) {
  const std::set<Version>& now = book_.at(node).now;
  if (status == ItemStatus::kExists) {
    ASSERT_TRUE(std::ranges::any_of(
        now, [&](const Version& stored) { return MayExist(stored, version, world_.rotten()); }));
  } else if (status == ItemStatus::kConflict) {
    ASSERT_TRUE(std::ranges::any_of(
        now, [&](const Version& stored) { return MayConflict(stored, version); }));
  } else if (status == ItemStatus::kSkipped) {
    ASSERT_TRUE(book_.at(node).parent.has_value());
  } else {
    ASSERT_TRUE(status == ItemStatus::kOk || status == ItemStatus::kNoSpace ||
                status == ItemStatus::kQuota || status == ItemStatus::kBusy ||
                (status == ItemStatus::kCorrupt && may_be_corrupt))
        << ItemStatusName(status);
  }
}

void Client::FinishPut() {
  if (puts_.empty()) return;
  std::swap(puts_[random_.Below(puts_.size())], puts_.back());
  OpenPut put = std::move(puts_.back());
  puts_.pop_back();
  if (random_.OneIn(5)) return;  // the client died
  const ItemStatus status = put.slot.Commit().status;
  CheckPutAnswer(put.node, put.version, status, put.spoiled || put.flips != world_.flips());
  if (status != ItemStatus::kOk) return;
  // A bit that flips may be the one that was spoiled.
  ASSERT_TRUE(!put.spoiled || put.flips != world_.flips());
  // In memory, whatever extended an older page of this key went with it.
  if (!world_.has_disk()) book_.Gone(put.node);
  book_.Stored(put.node, put.version);
}

void Client::DropPuts() {
  if (puts_.size() > kPutsMax) puts_.clear();
}

// --- Reads ---

void Client::Fetch() {
  const std::vector<Book::Node> path = book_.PathTo(book_.Any(random_));
  const size_t first = random_.Below(path.size());
  const std::vector<std::string_view> keys = book_.KeysAt(path);
  const Book::Node node = path[first];
  std::set<Version> allowed = book_.at(node).now;
  const uint64_t changes = book_.changes();
  const uint64_t flips = world_.flips();
  book_.SetBusy(node);
  PinResult pin = store().Pin(world_.space(), keys[first]);
  if (pin.archived)
    pin = store().Load(world_.space(), std::span<const std::string_view>(keys).subspan(first));
  book_.SetBusy(std::nullopt);
  // Others may have had their turn while the disk was read.
  const bool meanwhile = changes != book_.changes();
  allowed.insert(book_.at(node).now.begin(), book_.at(node).now.end());
  if (pin.status != ItemStatus::kOk) {
    ASSERT_TRUE(meanwhile || world_.rotten() || !book_.IsLeased(node))
        << ItemStatusName(pin.status);
    if (!meanwhile && pin.message.empty()) book_.Missed(node);
    return;
  }
  ASSERT_FALSE(allowed.empty()) << "page " << node << ": a page that is not there was found";
  const auto bytes = pin.page.VerifiedPage();
  if (!bytes.ok()) {
    ASSERT_TRUE(world_.rotten()) << bytes.status();
    book_.DropLeasesOf(node);
    book_.Gone(node);
    return;
  }
  const std::optional<Version> version = VersionOf(*bytes, pin.page.meta().encoding, allowed);
  ASSERT_TRUE(version.has_value()) << "wrong bytes";
  ASSERT_EQ(pin.page.meta().first_position, book_.at(node).item.first_position);
  ++pages_checked_;
  if (!meanwhile) book_.at(node).now = {*version};
  if (random_.OneIn(3) && held_.size() < kHeldMax)
    held_.push_back({std::move(pin.page), *version, flips});
}

void Client::LookUp(bool lease) {
  const std::vector<Book::Node> path = book_.PathTo(book_.Any(random_));
  const std::vector<std::string_view> keys = book_.KeysAt(path);
  const absl::Duration life = absl::Seconds(1 + random_.Below(60));
  const absl::Duration before = world_.clock().Now();
  const LookupResult found =
      store().Lookup(world_.space(),
                     {.keys = keys, .lease_session = lease ? session_ : 0, .lease_duration = life});
  ASSERT_EQ(found.pages.size(), found.prefix_pages);
  Book::Lease granted{found.lease, session_, before + std::min(life, absl::Seconds(50)), {}};
  for (size_t i = 0; i < path.size(); ++i) {
    const bool hit = i < found.prefix_pages;
    // Only pages found in memory are leased. What follows the first miss was not looked for.
    ASSERT_TRUE(i != found.prefix_pages || world_.rotten() || !book_.IsLeased(path[i]));
    ASSERT_TRUE(!hit || !book_.at(path[i]).now.empty()) << "page " << path[i] << ": "
                                                        << "a page that is not there was found";
    if (hit && found.pages[i].meta.tier != TierKind::kDisk) granted.nodes.push_back(path[i]);
  }
  if (found.prefix_pages < path.size()) {
    const Book::Node hole = path[found.prefix_pages];
    // In memory there are no holes: nothing below it is stored.
    if (world_.has_disk())
      book_.Missed(hole);
    else
      book_.Gone(hole);
  }
  if (found.lease != 0) book_.leases().push_back(std::move(granted));
}

void Client::ReleaseLease() {
  std::vector<Book::Lease>& leases = book_.leases();
  if (leases.empty()) return;
  const size_t nth = random_.Below(leases.size());
  const ItemStatus status = store().ReleaseLease(leases[nth].lease);
  ASSERT_TRUE(status == ItemStatus::kOk || leases[nth].end <= world_.clock().Now());
  leases.erase(leases.begin() + static_cast<std::ptrdiff_t>(nth));
}

void Client::EndSession() {
  CloseSession();
  OpenSession();
}

// --- Others ---

void Client::Touch() {
  store().Touch(world_.space(), book_.KeysAt(book_.PathTo(book_.Likely(random_))),
                SomeTraits(random_));
}

void Client::Delete() {
  const Book::Node node = book_.Any(random_);
  const std::string_view key = book_.at(node).item.key;
  const ItemStatus status = store().Delete(world_.space(), {&key, 1})[0];
  ASSERT_TRUE(status != ItemStatus::kOk || !book_.at(node).now.empty());
  ASSERT_TRUE(status == ItemStatus::kOk || world_.rotten() || !book_.IsLeased(node));
  book_.DropLeasesOf(node);
  book_.Gone(node);
}

void Client::ReadCopy() {
  if (world_.gpu() == nullptr) return;
  const Book::Node node = book_.Likely(random_);
  const PinResult pin = store().Pin(world_.space(), book_.at(node).item.key);
  if (pin.status != ItemStatus::kOk) return;
  PinnedCopy copy = store().PinCopy(pin.page);
  if (copy) HoldCopy(std::move(copy), book_.at(node).now);
}

}  // namespace oscarkv::testing
