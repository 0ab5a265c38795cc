// Random operations on the store against a plain map, with faults. What must hold:
//   * A read returns the bytes that were written, or an honest miss: never other bytes, never a
//     page that was deleted, cleared or never stored.
//   * What is leased or pinned is there.
//   * Space adds up after every step, and never passes the capacity.
//   * A page that is put WIDE is read so, or as what re-encoding makes of it; who pinned or leased
//     it keeps the form that it had.
//   * A copy in a faster tier has its page's bytes, whatever its device does; a copy that is held
//     stays.
//   * After all is let go nothing is pinned, and Clear brings all memory back.
//
// The seed is printed; --seed=N replays it.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/core/learnt_policy.h"
#include "server/core/re_encoder.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"
#include "tests/core/store_test.h"
#include "tests/model/key_tree.h"
#include "tests/model/model_flags.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {
namespace {

// --seed=N runs that seed alone; --steps=N that many steps of each.
struct Arguments {
  uint64_t seed = 0;  // 0: some, at random
  uint64_t steps = 25'000;
};
Arguments& GetArguments() {
  static Arguments arguments;
  return arguments;
}

// What the map knows of a key. "Maybe" because the store may evict what nobody holds.
struct Known {
  bool maybe_stored = false;            // if not, a hit is an error
  bool corrupted = false;               // a bit was flipped: it may be found corrupt, never read
  uint64_t seed = 0;                    // of the bytes
  Encoding encoding = Encoding::kWide;  // as it was put
  bool maybe_packed = false;            // it was put WIDE, and may have been re-encoded since
};

// What the store lies in.
enum class Memory { kFakeTier, kHostTier, kHostTierWithCopies };

class StoreModel : public StoreTest {
 protected:
  struct HeldPage {
    PinnedPage page;
    uint64_t seed;
    Encoding put_as;
    bool corrupted;
  };
  struct HeldLease {
    LeaseId lease;
    absl::Duration end;
    SessionId session;
    std::vector<size_t> nodes;
    std::map<size_t, Encoding> forms;  // [node]
  };
  struct OpenPut {
    PutSlot slot;
    size_t node;
    TestItem item;
    bool spoiled;  // its bytes do not have their checksums
    bool may_be_spoiled;
  };

  struct HeldCopy {
    PinnedCopy copy;
    uint64_t seed;
    Encoding put_as;
    Encoding form;
  };

  void Start(uint64_t seed, Memory memory) {
    random_.seed(seed);
    mover_.reset();
    encoder_.reset();
    std::unique_ptr<MappedTier> tier = std::make_unique<FakeTier>(40 * kWideSlotBytes);
    if (memory != Memory::kFakeTier)
      tier = *HostTier::Create({.capacity_bytes = 43'520, .unit_bytes = 8704});
    std::unique_ptr<PageCopies> copies;
    if (memory == Memory::kHostTierWithCopies) copies = MakeCopies();
    policy_ = nullptr;  // the default is LRU
    if (seed % 2 == 0) policy_ = std::make_unique<LearntPolicy>();
    OpenOver(std::move(tier),
             {.lease_max = absl::Seconds(50),
              .leased_share_max = 0.4,
              .reencode_free_share = 0.25,
              .wide_tails_share_max = seed % 3 == 0 ? 0.3 : 0.0},
             std::move(copies));
    codec_ = MakeCodec(space());
    encoder_ = std::make_unique<ReEncoder>(store());
    store().SetPageTtl(space(), absl::Seconds(40));
    if (store().copies() != nullptr) {
      mover_ = std::make_unique<CopyMover>(
          store(), CopyMoverOptions{.pages_max = 1 + static_cast<uint32_t>(Below(5))});
    }
    nodes_ = GrowKeyTree(space());
    known_.resize(nodes_.size());
    session_ = store().OpenSession("model");
  }
  // Room for a dozen copies, on a device that lives for a while.
  std::unique_ptr<PageCopies> MakeCopies() {
    faults_ = std::make_shared<DeviceFaults>();
    auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(13'056, faults_), 2176);
    gpu_ = gpu.get();
    return *PageCopies::Create({.window = absl::Seconds(40)}, std::move(gpu));
  }

  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }
  // Mostly one whose parent is there and which is not.
  size_t NodeToPut() {
    for (int attempt = 0; attempt < 8; ++attempt) {
      const size_t node = AnyNode();
      const std::optional<size_t> parent = nodes_[node].parent;
      if (!known_[node].maybe_stored && (!parent.has_value() || known_[*parent].maybe_stored))
        return node;
    }
    return AnyNode();
  }
  size_t AnyNode() { return Below(nodes_.size()); }
  std::vector<size_t> PathTo(size_t node) const { return PathInTree(nodes_, node); }
  std::vector<std::string_view> KeysAt(const std::vector<size_t>& nodes) const {
    std::vector<std::string_view> keys;
    for (const size_t node : nodes) keys.emplace_back(nodes_[node].item.key);
    return keys;
  }
  void Forget(size_t node) {
    known_[node] = {};
    for (const size_t child : nodes_[node].children) Forget(child);
  }
  bool IsHeld(size_t node) const {  // by a live lease
    return std::any_of(leases_.begin(), leases_.end(), [&](const HeldLease& lease) {
      return std::find(lease.nodes.begin(), lease.nodes.end(), node) != lease.nodes.end();
    });
  }

  // --- Operations ---

  void BeginPut() {
    OpenPut put{};
    put.node = NodeToPut();
    put.item = nodes_[put.node].item;
    put.item.encoding = Below(2) == 0 ? Encoding::kWide : Encoding::kPacked;
    put.item.seed = Below(4);  // writers disagree now and then
    const TestPage page = MakePage(space(), put.item.encoding, put.item.seed);
    PutItem item = AsPutItem(put.item, page);
    item.request = AnyTraits();
    item.ends_put = Below(3) == 0;
    BeginPutResult begun = store().BeginPut(space(), item);
    CheckPutAnswer(put, begun.result.status);
    if (!begun.result.ok()) return;
    std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
    put.spoiled = put.may_be_spoiled = Below(10) == 0;
    if (put.spoiled) begun.slot.bytes()[Below(64)] ^= std::byte{4};
    put.slot = std::move(begun.slot);
    puts_.push_back(std::move(put));
  }
  // What BeginPut and Commit may say, given what is known.
  void CheckPutAnswer(const OpenPut& put, ItemStatus status) {
    const Known& known = known_[put.node];
    if (status == ItemStatus::kExists) {
      ASSERT_TRUE(known.maybe_stored);
      ASSERT_TRUE(known.encoding != put.item.encoding || known.seed == put.item.seed ||
                  known.corrupted || known.maybe_packed);
    } else if (status == ItemStatus::kConflict) {
      // Other codes than those of re-encoding are others, whoever made them.
      const bool meets_packed = known.maybe_packed && put.item.encoding == Encoding::kPacked;
      ASSERT_TRUE(known.maybe_stored && (meets_packed || (known.encoding == put.item.encoding &&
                                                          known.seed != put.item.seed)));
    } else if (status == ItemStatus::kSkipped) {
      ASSERT_TRUE(nodes_[put.node].parent.has_value());
    } else {
      ASSERT_TRUE(status == ItemStatus::kOk || status == ItemStatus::kNoSpace ||
                  status == ItemStatus::kQuota || status == ItemStatus::kBusy ||
                  (status == ItemStatus::kCorrupt && put.may_be_spoiled));
    }
  }
  void FinishPut() {
    if (puts_.empty()) return;
    std::swap(puts_[Below(puts_.size())], puts_.back());
    OpenPut put = std::move(puts_.back());
    puts_.pop_back();
    if (Below(5) == 0) return;  // the client died
    const ItemStatus status = put.slot.Commit().status;
    CheckPutAnswer(put, status);
    if (status != ItemStatus::kOk) return;
    ASSERT_FALSE(put.spoiled);
    // Whatever extended an older page of this key went with that page.
    Forget(put.node);
    known_[put.node] = {true, false, put.item.seed, put.item.encoding};
  }

  void Read() {
    const size_t node = AnyNode();
    PinResult pin = store().Pin(space(), nodes_[node].item.key);
    ASSERT_TRUE(pin.status == ItemStatus::kOk || !IsHeld(node));
    if (pin.status != ItemStatus::kOk) {
      Forget(node);
      return;
    }
    ASSERT_TRUE(known_[node].maybe_stored);
    const Encoding form = pin.page.meta().encoding;
    ASSERT_TRUE(form == known_[node].encoding || known_[node].maybe_packed);
    for (const HeldLease& lease : leases_) {
      const bool leased =
          std::find(lease.nodes.begin(), lease.nodes.end(), node) != lease.nodes.end();
      ASSERT_TRUE(!leased || lease.forms.at(node) == form);
    }
    if (!CheckBytes(pin.page, known_[node].seed, known_[node].encoding, known_[node].corrupted)) {
      DropLeasesOf(node);
      Forget(node);
    } else if (Below(3) == 0 && held_.size() < 6) {
      held_.push_back(
          {std::move(pin.page), known_[node].seed, known_[node].encoding, known_[node].corrupted});
    }
  }
  // Whether the page is good. Fails the test on wrong bytes, and on corruption that nobody caused.
  bool CheckBytes(PinnedPage& page, uint64_t seed, Encoding put_as, bool may_be_corrupt) {
    const auto bytes = page.VerifiedPage();
    if (!bytes.ok()) {
      EXPECT_TRUE(may_be_corrupt) << bytes.status();
      return false;
    }
    const TestPage expected = PageOf(seed, put_as, page.meta().encoding);
    EXPECT_TRUE(std::ranges::equal(*bytes, expected.bytes));
    return true;
  }
  // What a page is that was put so, and has this form now.
  TestPage PageOf(uint64_t seed, Encoding put_as, Encoding form) {
    const TestPage put = MakePage(space(), put_as, seed);
    return form == put_as ? put : PackedFormOf(*codec_, put);
  }
  void LetGo() {
    if (held_.empty()) return;
    HeldPage& held = held_[Below(held_.size())];
    // Deleted, evicted, cleared, stored anew: the bytes are those of the pin.
    CheckBytes(held.page, held.seed, held.put_as, true);
    std::swap(held, held_.back());
    held_.pop_back();
  }

  void Lookup(bool lease) {
    const std::vector<size_t> path = PathTo(AnyNode());
    const auto keys = KeysAt(path);
    const absl::Duration life = absl::Seconds(1 + Below(60));
    const LookupResult found = store().Lookup(
        space(), {.keys = keys, .lease_session = lease ? session_ : 0, .lease_duration = life});
    ASSERT_EQ(found.pages.size(), found.prefix_pages);
    for (size_t i = 0; i < path.size(); ++i) {
      const bool hit = i < found.prefix_pages;
      ASSERT_TRUE(hit || !IsHeld(path[i]));
      ASSERT_TRUE(!hit || known_[path[i]].maybe_stored);
    }
    // No holes: nothing below the first miss is stored.
    if (found.prefix_pages < path.size()) Forget(path[found.prefix_pages]);
    if (found.lease == 0) return;
    leases_.push_back({found.lease,
                       clock_.Now() + std::min(life, absl::Seconds(50)),
                       session_,
                       {path.begin(), path.begin() + found.prefix_pages},
                       {}});
    for (size_t i = 0; i < found.prefix_pages; ++i)
      leases_.back().forms[path[i]] = found.pages[i].meta.encoding;
  }
  void ReleaseLease() {
    if (leases_.empty()) return;
    const size_t i = Below(leases_.size());
    ASSERT_EQ(store().ReleaseLease(leases_[i].lease), ItemStatus::kOk);
    leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  // The store ends leases when it likes once their time has come, so the model ends them at once.
  void AdvanceClock() {
    clock_.Advance(absl::Seconds(Below(20)));
    store().ExpirePages();
    const size_t before = leases_.size();
    std::erase_if(leases_, [&](const HeldLease& lease) { return lease.end <= clock_.Now(); });
    ASSERT_EQ(store().ExpireLeases(), before - leases_.size());
  }
  // What the tenant may hold is lowered or raised: pages go that are too many, and no others.
  void ChangeQuota() {
    const TenantStats before = store().Stats().tenants[0];
    const uint64_t most = Below(3) == 0 ? Budget::kNoLimit : Below(45) * kWideSlotBytes;
    store().SetQuotas({.named = {}, .others = {.host_bytes = most}});
    const TenantStats after = store().Stats().tenants[0];
    const bool went = after.evicted_pages > before.evicted_pages;
    ASSERT_TRUE(!went || after.host_bytes + kWideSlotBytes > most);
  }
  void EndSession() {
    ASSERT_TRUE(store().CloseSession(session_));
    for (const HeldLease& lease : leases_) ASSERT_FALSE(store().LeaseIsLive(lease.lease));
    leases_.clear();
    session_ = store().OpenSession("model");
  }
  // A deleted or corrupt page is gone although a lease names it; the lease itself lives on.
  void DropLeasesOf(size_t node) {
    for (HeldLease& lease : leases_) std::erase(lease.nodes, node);
    for (const size_t child : nodes_[node].children) DropLeasesOf(child);
  }

  void Delete() {
    const size_t node = AnyNode();
    const std::string_view key = nodes_[node].item.key;
    const ItemStatus status = store().Delete(space(), {&key, 1})[0];
    ASSERT_TRUE(status != ItemStatus::kOk || known_[node].maybe_stored);
    ASSERT_TRUE(status == ItemStatus::kOk || !IsHeld(node));
    DropLeasesOf(node);
    Forget(node);
  }
  void Clear() {
    store().Clear(space());
    // What is pinned or leased stays, with what it extends; nobody else does.
    std::set<std::string_view> kept;
    for (const ListedPage& page : store().List(space(), 1000, 0).pages)
      kept.insert(nodes_[NumberOf(page.key)].item.key);
    for (size_t node = 0; node < nodes_.size(); ++node) {
      if (!kept.contains(nodes_[node].item.key)) {
        ASSERT_FALSE(IsHeld(node));
        known_[node].maybe_stored = false;
      }
    }
  }
  size_t NumberOf(const std::string& key) const {
    for (size_t node = 0; node < nodes_.size(); ++node)
      if (nodes_[node].item.key == key) return node;
    ADD_FAILURE() << "a key that nobody put";
    return 0;
  }

  void Corrupt() {
    // Any slot, any byte: of a page, of a checksum, of a half-written put. Every page may be hit.
    if (tier_->held() == 0) return;
    const size_t nth = Below(tier_->held());
    const TierSlot slot = tier_->slot(nth);
    ASSERT_TRUE(tier_->FlipBit(nth, Below(slot.bytes), static_cast<int>(Below(8))));
    for (Known& known : known_) known.corrupted = true;
    for (HeldPage& held : held_) held.corrupted = true;
    for (OpenPut& put : puts_) put.may_be_spoiled = true;
    // Care finds it: afterwards every page that is left is good.
    Scrub();
  }
  void Scrub() {
    uint64_t cursor = 0;
    do {
      cursor = store().Verify(cursor, 1 << 20).cursor;
    } while (cursor != 0);
    std::set<std::string> listed;
    for (const ListedPage& page : store().List(space(), 1000, 0).pages) listed.insert(page.key);
    for (size_t node = 0; node < nodes_.size(); ++node) {
      known_[node].corrupted = false;
      if (listed.contains(nodes_[node].item.key)) continue;
      DropLeasesOf(node);
      Forget(node);
    }
  }
  // --- Re-encoding ---

  // Begins and ends out of step, so that everything else happens in between.
  void ReEncodeSome() {
    const size_t action = Below(8);
    if (action == 0) {
      store().SetStoreWide(space(), static_cast<StoreWide>(1 + Below(3)));
    } else if (action == 1) {
      store().SetCodec(space(), codec_.get());  // the first time after pages have come
    } else if (action < 5 && taken_.size() < 3) {
      if (auto taken = encoder_->Take()) taken_.push_back(*std::move(taken));
    } else if (!taken_.empty()) {
      std::swap(taken_[Below(taken_.size())], taken_.back());
      for (Known& known : known_) known.maybe_packed |= known.encoding == Encoding::kWide;
      encoder_->Finish(std::move(taken_.back()));
      taken_.pop_back();
    }
  }

  // --- Copies ---

  void MoveSome() {
    if (Below(200) == 0) faults_->FlipInCopy(Below(2), Below(1000));
    if (Below(200) == 0) faults_->FailStart(Below(2), absl::InternalError("injected"));
    if (Below(200) == 0) faults_->FailWait(Below(2), absl::InternalError("injected"));
    if (Below(2000) == 0) faults_->FailWait(0, absl::UnavailableError("injected"));
    for (size_t steps = 1 + Below(4); steps > 0; --steps) mover_->Step();
  }
  void ReadCopy() {
    const size_t node = AnyNode();
    const PinResult pin = store().Pin(space(), nodes_[node].item.key);
    if (pin.status != ItemStatus::kOk) return;
    PinnedCopy copy = store().PinCopy(pin.page);
    if (!copy) return;
    held_copies_.push_back(
        {std::move(copy), known_[node].seed, known_[node].encoding, pin.page.meta().encoding});
    CheckCopy(held_copies_.back());
    // Whatever becomes of the page, now or later.
    const size_t other = Below(held_copies_.size());
    CheckCopy(held_copies_[other]);
    if (held_copies_.size() < 4) return;
    std::swap(held_copies_[other], held_copies_.back());
    held_copies_.pop_back();
  }
  void CheckCopy(const HeldCopy& held) {
    std::vector<std::byte> bytes(held.copy.slot().bytes);
    auto pending = gpu_->CopyOut(held.copy.slot(), bytes);
    if (pending.ok() && !(*pending)->Wait().ok()) return;  // an injected fault
    if (!pending.ok()) return;
    const TestPage expected = PageOf(held.seed, held.put_as, held.form);
    ++copies_checked_;
    EXPECT_TRUE(std::ranges::equal(expected.bytes, std::span(bytes).first(expected.bytes.size())));
  }

  void TouchSome() { store().Touch(space(), KeysAt(PathTo(AnyNode())), AnyTraits()); }
  // Hints of all kinds; a page in eight is pinned, or let go again.
  RequestTraits AnyTraits() {
    return {.number = Below(40),
            .new_tokens = Below(20'000),
            .output_tokens = static_cast<uint32_t>(Below(600)),
            .reuse = static_cast<ReuseHint>(Below(kReuseHints)),
            .residency = Below(4) != 0   ? Residency::kUnspecified
                         : Below(2) != 0 ? Residency::kPinned
                                         : static_cast<Residency>(Below(3)),
            .priority = static_cast<int8_t>(Below(5) - 2)};
  }
  void FailSome() { tier_->FailReservations(1, absl::ResourceExhaustedError("injected")); }

  void StepOfCopies() {
    const size_t action = Below(3);
    if (action == 0) return MoveSome();
    if (action == 1) return ReadCopy();
    TouchSome();
  }
  void Step() {
    if (mover_ != nullptr && Below(3) == 0) return StepOfCopies();
    if (Below(6) == 0) return ReEncodeSome();
    const size_t action = Below(100);
    if (action < 30) return BeginPut();
    if (action < 56) return FinishPut();
    if (action < 68) return Read();
    if (action < 74) return LetGo();
    if (action < 80) return Lookup(false);
    if (action < 85) return Lookup(true);
    if (action < 88) return ReleaseLease();
    if (action < 90) return Below(3) == 0 ? ChangeQuota() : AdvanceClock();
    if (action < 93) return Below(4) == 0 ? Delete() : TouchSome();
    if (action < 96) return TouchSome();
    if (action < 97) return FailSome();
    if (action < 98) return Below(4) == 0 ? Corrupt() : Read();
    if (action < 99) return Below(4) == 0 ? Clear() : EndSession();
    if (puts_.size() > 5) puts_.clear();
  }

  void CheckSpace() {
    const StoreStats stats = store().Stats();
    const TierStats& tier = stats.tiers.back();
    ASSERT_LE(tier.used_bytes, tier.capacity_bytes);
    ASSERT_EQ(tier.reserved_slots,
              stats.pages + stats.detached_pages + stats.open_puts + stats.ladder.retired_slots);
    const size_t moves = mover_ == nullptr ? 0 : 5;  // under way, at most
    ASSERT_LE(stats.ladder.retired_slots, held_.size() + taken_.size() + puts_.size() + moves);
    ASSERT_EQ(stats.open_puts, puts_.size());
    ASSERT_LE(stats.tenants[0].host_bytes, tier.used_bytes);
    ASSERT_GE(stats.tenants[0].host_pages, stats.pages + stats.detached_pages + stats.open_puts);
    ASSERT_EQ(stats.leases, leases_.size());
    ASSERT_LE(stats.leased_bytes, stats.leasable_bytes);
    if (mover_ != nullptr) {
      ASSERT_LE(stats.tiers[0].used_bytes, stats.tiers[0].capacity_bytes);
      ASSERT_LE(stats.tiers[0].reserved_slots, stats.pages + held_copies_.size() + 5);
    }
    ASSERT_EQ(stats.namespaces[0].wide_pages + stats.namespaces[0].packed_pages, stats.pages);
  }

  void Drain() {
    held_.clear();
    puts_.clear();
    leases_.clear();
    for (ReEncoder::Taken& taken : taken_) encoder_->Finish(std::move(taken));
    taken_.clear();
    held_copies_.clear();
    mover_.reset();
    store().CloseSession(session_);
    StoreStats stats = store().Stats();
    EXPECT_EQ(stats.pins, 0u);
    EXPECT_EQ(stats.holds, 0u);
    EXPECT_EQ(stats.leased_bytes, 0u);
    EXPECT_EQ(stats.open_puts, 0u);
    EXPECT_EQ(stats.detached_pages, 0u);
    EXPECT_EQ(stats.ladder.retired_slots, 0u);
    store().Clear(space());
    stats = store().Stats();
    EXPECT_EQ(stats.pages, 0u);
    for (const TierStats& tier : stats.tiers) {
      EXPECT_EQ(tier.used_bytes, 0u);
      EXPECT_EQ(tier.reserved_slots, 0u);
    }
    EXPECT_EQ(stats.tenants[0].host_bytes, 0u);
    EXPECT_EQ(stats.tenants[0].gpu_bytes, 0u);
  }

  std::mt19937_64 random_;
  std::vector<Node> nodes_;
  std::vector<Known> known_;  // [node]
  std::vector<HeldPage> held_;
  std::vector<HeldLease> leases_;
  std::vector<OpenPut> puts_;
  SessionId session_ = 0;
  std::shared_ptr<DeviceFaults> faults_;
  GpuTier* gpu_ = nullptr;
  std::unique_ptr<CopyMover> mover_;  // null without copies
  std::vector<HeldCopy> held_copies_;
  uint64_t copies_made_ = 0;
  uint64_t copies_checked_ = 0;
  std::unique_ptr<PageCodec> codec_;
  std::unique_ptr<ReEncoder> encoder_;
  std::vector<ReEncoder::Taken> taken_;
};

class StoreModelTest : public StoreModel, public ::testing::WithParamInterface<Memory> {};

TEST_P(StoreModelTest, RandomOperationsAgreeWithAMap) {
  const auto [only, steps] = GetArguments();
  const uint64_t first = only != 0 ? only : 1 + std::random_device{}() % 1'000'000;
  const uint64_t runs = only != 0 ? 1 : 6;
  for (uint64_t seed = first; seed < first + runs; ++seed) {
    std::printf("[     seed ] --seed=%" PRIu64 "\n", seed);
    SCOPED_TRACE(absl::StrCat("--seed=", seed));
    known_.clear();
    Start(seed, GetParam());
    for (uint64_t step = 0; step < steps; ++step) {
      Step();
      CheckSpace();
      if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "at step " << step;
    }
    const StoreCounters counters = store().Stats().counters;
    // In one run the device may be lost before its first copy.
    copies_made_ += store().Stats().copies.copied_pages;
    const LadderStats ladder = store().Stats().ladder;
    Drain();
    if (steps < Arguments{}.steps) continue;
    // The run was not an idle one: everything that can happen did.
    for (const ItemStatus status : {ItemStatus::kOk, ItemStatus::kExists, ItemStatus::kConflict,
                                    ItemStatus::kSkipped, ItemStatus::kCorrupt})
      EXPECT_GT(counters.puts_by_outcome[static_cast<size_t>(status)], 0u)
          << ItemStatusName(status);
    for (size_t reason = 0; reason < kRemoveReasons; ++reason) {
      EXPECT_GT(counters.removed_by_reason[reason], 0u)
          << RemoveReasonName(static_cast<RemoveReason>(reason));
    }
    EXPECT_GT(ladder.due_pages, 0u);
    EXPECT_GT(ladder.pressed_pages, 0u);
    EXPECT_GT(counters.leases_granted, 0u);
    EXPECT_GT(counters.leases_expired, 0u);
    EXPECT_TRUE(GetParam() == Memory::kFakeTier || counters.moved_pages > 0);
  }
  EXPECT_TRUE(GetParam() != Memory::kHostTierWithCopies || steps < Arguments{}.steps ||
              (copies_made_ > 0 && copies_checked_ > 0));
}

INSTANTIATE_TEST_SUITE_P(OverEachMemory, StoreModelTest,
                         ::testing::Values(Memory::kFakeTier, Memory::kHostTier,
                                           Memory::kHostTierWithCopies));

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  auto& arguments = oscarkv::testing::GetArguments();
  return oscarkv::testing::RunModelTests(argc, argv,
                                         {{"seed", &arguments.seed}, {"steps", &arguments.steps}});
}
