#include "tests/bench/trace_replay.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "server/core/archive_writer.h"
#include "server/core/learnt_policy.h"
#include "server/core/lru_policy.h"
#include "server/core/page_store.h"
#include "server/core/re_encoder.h"
#include "server/tier/disk/disk_archive.h"
#include "server/tier/disk/posix_io.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_tier.h"
#include "tests/support/scoped_folder.h"

namespace oscarkv::bench {
namespace {

// A namespace of small pages: a block of the disk each, with what describes them.
NamespaceSpec TinySpec() {
  NamespaceSpec spec;
  spec.model = "trace";
  spec.geometry = {.layers = 1,
                   .kv_heads = 1,
                   .k_head_dim = 16,
                   .v_head_dim = 16,
                   .page_tokens = 16,
                   .dtype = DType::kBf16};
  return spec;
}

// A namespace whose PACKED pages are 7.1 times smaller than its WIDE ones, as a model's are: a head
// of 128, and 8 positions that stand for a page's tokens. A tail is a page long.
constexpr uint32_t kLadderPositions = 8;
NamespaceSpec LadderSpec() {
  NamespaceSpec spec;
  spec.model = "trace";
  spec.geometry = {.layers = 1,
                   .kv_heads = 1,
                   .k_head_dim = 128,
                   .v_head_dim = 128,
                   .page_tokens = kLadderPositions,
                   .dtype = DType::kBf16};
  spec.codec.transform_hash = std::string(32, 'T');
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = kLadderPositions;
  return spec;
}

// A disk tier, in a folder in memory, with room for so many pages of a block of the disk's each.
absl::StatusOr<std::unique_ptr<PageArchive>> OpenDisk(const std::string& path, uint64_t pages) {
  constexpr uint64_t kSegmentBytes = 1 << 20;
  constexpr uint64_t kPagesPerSegment = 239;  // with their table and the two blocks in front
  const uint64_t segments = (pages + kPagesPerSegment - 1) / kPagesPerSegment;
  auto disk = DiskStore::Open(
      {.directory = {.path = path,
                     .owner = "trace",
                     .capacity_bytes = segments * kSegmentBytes + 3 * kDiskBlockBytes,
                     .segment_bytes = kSegmentBytes}},
      std::make_unique<PosixIo>());
  if (!disk.ok()) return disk.status();
  return std::make_unique<DiskArchive>(*std::move(disk));
}

// A key of 16 bytes: page `index` of a block.
std::string KeyOf(uint32_t block, uint32_t index) {
  std::string key(16, 'k');
  std::memcpy(key.data(), &block, sizeof(block));
  std::memcpy(key.data() + sizeof(block), &index, sizeof(index));
  return key;
}

// What a client that knew the trace would say at each request: whether the last whole block of the
// prompt is used again.
std::vector<ReuseHint> PerfectHints(const std::vector<TraceRequest>& trace) {
  std::vector<ReuseHint> hints(trace.size());
  std::vector<bool> used_later(CountBlocks(trace), false);
  for (size_t i = trace.size(); i-- > 0;) {
    const std::vector<uint32_t>& blocks = trace[i].blocks;
    const size_t whole = trace[i].input_tokens / kBlockTokens;
    const size_t last = std::min(std::max<size_t>(whole, 1), blocks.size()) - 1;
    hints[i] = used_later[blocks[last]] ? ReuseHint::kWillReturn : ReuseHint::kSessionOver;
    for (const uint32_t block : blocks) used_later[block] = true;
  }
  return hints;
}

class Replayer {
 public:
  Replayer(const std::vector<TraceRequest>& trace, const ReplayOptions& options)
      : trace_(trace), options_(options), random_(options.seed) {
    if (options.hints) hints_ = PerfectHints(trace);
  }

  absl::Status Open() {
    std::unique_ptr<EvictionPolicy> policy;
    if (options_.policy == "learnt") {
      policy = std::make_unique<LearntPolicy>();
    } else if (options_.policy == "lru") {
      policy = std::make_unique<LruPolicy>();
    } else {
      return absl::InvalidArgumentError(absl::StrCat("no policy '", options_.policy, "'"));
    }
    policy_ = policy.get();
    if (options_.page_tokens == 0 || kBlockTokens % options_.page_tokens != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("page_tokens must divide ", kBlockTokens, ", found ", options_.page_tokens));
    const bool laddered = !options_.ladder.empty();
    const std::optional<StoreWide> mode = ParseStoreWide(options_.ladder);
    if (laddered && !mode.has_value() && options_.ladder != "kept")
      return absl::InvalidArgumentError(absl::StrCat("no ladder '", options_.ladder, "'"));
    const NamespaceSpec spec = laddered ? LadderSpec() : TinySpec();
    positions_ = spec.geometry.page_tokens;
    auto probe = Namespace::Create(spec, 0);
    if (!probe.ok()) return probe.status();
    page_.resize(probe->page_bytes(Encoding::kWide));
    // As bf16 between 0.5 and 2.
    for (size_t i = 0; laddered && i < page_.size(); ++i)
      page_[i] = i % 2 == 1 ? std::byte{0x3f} : static_cast<std::byte>(i * 37 / 2);
    crc_ = Crc32c(page_);
    const uint64_t slot_bytes = page_.size() + sizeof(crc_);
    std::unique_ptr<PageArchive> archive;
    const std::optional<ArchiveAdmission> admission = ParseArchiveAdmission(options_.admit);
    if (!admission.has_value() || (laddered && options_.disk_pages > 0))
      return absl::InvalidArgumentError(
          absl::StrCat("a disk with '", options_.admit, "' and ladder '", options_.ladder, "'"));
    if (options_.disk_pages > 0) {
      auto opened = OpenDisk(folder_.path(), options_.disk_pages);
      if (!opened.ok()) return opened.status();
      archive = *std::move(opened);
    }
    auto store =
        PageStore::Create({.evictions_per_put_max = 1 << 20,
                           .archive_admission = *admission,
                           .archive_chance_min = options_.chance_min,
                           .store_wide = mode.value_or(StoreWide::kUntilPressure)},
                          std::make_unique<testing::FakeTier>(options_.capacity_pages * slot_bytes),
                          std::move(policy), clock_, nullptr, std::move(archive));
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    if (options_.disk_pages > 0) writer_ = std::make_unique<ArchiveWriter>(*store_);
    auto space = store_->OpenNamespace(spec, true);
    if (!space.ok()) return space.status();
    space_ = *space;
    return mode.has_value() ? StartLadder() : absl::OkStatus();
  }

  ReplayResult Run() {
    const auto begin = std::chrono::steady_clock::now();
    const double half_s = (trace_.front().time_s + trace_.back().time_s) / 2;
    ReplayResult result;
    for (size_t i = 0; i < trace_.size(); ++i) {
      const TraceRequest& request = trace_[i];
      clock_.Advance(absl::Seconds(request.time_s) - clock_.Now());
      const HitCount hits = Serve(request, i);
      result.whole.Add(hits);
      if (request.time_s >= half_s) result.second_half.Add(hits);
    }
    const StoreCounters counters = store_->Stats().counters;
    result.evicted_pages = counters.removed_by_reason[static_cast<size_t>(RemoveReason::kEvicted)];
    result.refused_pages = counters.puts_refused;
    const LadderStats ladder = store_->Stats().ladder;
    result.reencoded_pages = ladder.due_pages + ladder.pressed_pages;
    result.evicted_ahead = ladder.evicted_ahead;
    const ArchiveCounters archive = store_->Stats().archive;
    result.disk_written_pages = archive.written_pages;
    result.disk_refused_pages = archive.refused_pages;
    result.policy_bytes = policy_->memory_bytes();
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return result;
  }

 private:
  absl::Status StartLadder() {
    auto set = MakeHadamardTransformSet(space_->spec().geometry, 0.86f, 0.86f);
    if (!set.ok()) return set.status();
    auto codec = MakePageCodec(CodecBackend::kCpu, space_->spec().geometry, space_->spec().codec,
                               std::make_shared<const TransformSet>(*std::move(set)));
    if (!codec.ok()) return codec.status();
    codec_ = *std::move(codec);
    store_->SetCodec(*space_, codec_.get());
    encoder_ = std::make_unique<ReEncoder>(*store_);
    return absl::OkStatus();
  }

  ReuseHint HintOf(size_t index) {
    if (!options_.hints) return ReuseHint::kNone;
    const bool wrong = std::uniform_real_distribution<double>()(random_) < options_.wrong_hints;
    const bool returns = (hints_[index] == ReuseHint::kWillReturn) != wrong;
    return returns ? ReuseHint::kWillReturn : ReuseHint::kSessionOver;
  }

  // What a worker does for a request: looks up its prefix, fetches what is there, stores the rest.
  HitCount Serve(const TraceRequest& request, size_t index) {
    const uint32_t per_block = kBlockTokens / options_.page_tokens;
    size_t pages = request.blocks.size() * per_block;
    if (per_block > 1) pages = std::min<size_t>(pages, request.input_tokens / options_.page_tokens);
    keys_.clear();
    for (size_t i = 0; i < pages; ++i)
      keys_.push_back(KeyOf(request.blocks[i / per_block], static_cast<uint32_t>(i % per_block)));
    const std::vector<std::string_view> views(keys_.begin(), keys_.end());
    size_t held = store_->Lookup(*space_, {.keys = views}).prefix_pages;
    const uint64_t loaded_before = LoadedPages();
    const std::vector<PinnedPage> fetched = Fetch(views, &held);
    const uint64_t loaded = LoadedPages() - loaded_before;
    RequestTraits traits{
        .number = index + 1, .output_tokens = request.output_tokens, .reuse = HintOf(index)};
    const std::span<const std::string_view> all(views);
    if (held > 0) store_->Touch(*space_, all.first(held), traits);
    traits.new_tokens =
        uint64_t{store_->CountUnseen(*space_, all.subspan(held))} * options_.page_tokens;
    for (size_t i = held; i < pages; ++i) {
      PutOne({.key = keys_[i],
              .parent = i == 0 ? std::string_view() : std::string_view(keys_[i - 1]),
              .first_position = i * positions_,
              .bytes = page_.size(),
              .block_crcs = {&crc_, 1},
              .request = traits,
              .ends_put = i + 1 == pages});
    }
    return {.blocks = static_cast<double>(request.blocks.size()),
            .hits = static_cast<double>(held) / per_block,
            .disk_hits = static_cast<double>(loaded) / per_block};
  }

  // What is there of the first `held` pages, with a disk; sets `held` to how many come.
  std::vector<PinnedPage> Fetch(std::span<const std::string_view> keys, size_t* held) {
    std::vector<PinnedPage> pages;
    for (size_t i = 0; writer_ != nullptr && i < *held; ++i) {
      PinResult pinned = store_->Pin(*space_, keys[i]);
      if (pinned.archived) pinned = store_->Load(*space_, keys.subspan(i, *held - i));
      if (pinned.status != ItemStatus::kOk) *held = i;
      if (pinned.status == ItemStatus::kOk) pages.push_back(std::move(pinned.page));
      WriteAll();
    }
    return pages;
  }

  uint64_t LoadedPages() const {
    return writer_ == nullptr ? 0 : store_->Stats().counters.loaded_pages;
  }

  void WriteAll() {
    while (writer_ != nullptr && writer_->Step()) {
    }
  }

  void PutOne(const PutItem& item) {
    BeginPutResult begun = store_->BeginPut(*space_, item);
    // As clients do: room is being made.
    if (begun.result.status == ItemStatus::kBusy) {
      ReEncodeAll();
      begun = store_->BeginPut(*space_, item);
    }
    if (!begun.result.ok()) return;
    std::memcpy(begun.slot.bytes().data(), page_.data(), page_.size());
    begun.slot.Commit();
    ReEncodeAll();
    WriteAll();
  }

  void ReEncodeAll() {
    while (encoder_ != nullptr && encoder_->Step()) {
    }
  }

  const std::vector<TraceRequest>& trace_;
  const ReplayOptions options_;
  std::mt19937_64 random_;
  std::vector<ReuseHint> hints_;  // [request]
  testing::ScopedFolder folder_{testing::ScopedFolder::Where::kMemory};
  testing::FakeClock clock_;
  EvictionPolicy* policy_ = nullptr;
  std::unique_ptr<PageStore> store_;
  const Namespace* space_ = nullptr;
  uint32_t positions_ = 0;  // of a page, as the namespace has them
  std::unique_ptr<PageCodec> codec_;
  std::unique_ptr<ReEncoder> encoder_;     // null without a ladder
  std::unique_ptr<ArchiveWriter> writer_;  // null without a disk
  std::vector<std::byte> page_;
  uint32_t crc_ = 0;
  std::vector<std::string> keys_;
};

}  // namespace

absl::StatusOr<ReplayResult> Replay(const std::vector<TraceRequest>& trace,
                                    const ReplayOptions& options) {
  Replayer replayer(trace, options);
  if (const absl::Status opened = replayer.Open(); !opened.ok()) return opened;
  return replayer.Run();
}

ReplayResult ReplayOptimum(const std::vector<TraceRequest>& trace, uint64_t capacity_blocks) {
  constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  // Uses are numbered through the trace; of one request, later blocks come later.
  std::vector<std::vector<uint64_t>> next(trace.size());
  std::vector<uint64_t> upcoming(CountBlocks(trace), kNever);
  for (size_t i = trace.size(); i-- > 0;) {
    next[i].resize(trace[i].blocks.size());
    for (size_t j = trace[i].blocks.size(); j-- > 0;) {
      uint64_t& use = upcoming[trace[i].blocks[j]];
      next[i][j] = use;
      use = (uint64_t{i} << 20) + j;
    }
  }
  ReplayResult result;
  const double half_s = (trace.front().time_s + trace.back().time_s) / 2;
  std::vector<bool> held(upcoming.size(), false);
  std::set<std::pair<uint64_t, uint32_t>> by_next;  // (next use, block) of what is held
  for (size_t i = 0; i < trace.size(); ++i) {
    const std::vector<uint32_t>& blocks = trace[i].blocks;
    size_t hits = 0;
    while (hits < blocks.size() && held[blocks[hits]]) ++hits;
    for (size_t j = 0; j < blocks.size(); ++j) {
      if (held[blocks[j]]) by_next.erase({(uint64_t{i} << 20) + j, blocks[j]});
      held[blocks[j]] = next[i][j] != kNever;
      if (held[blocks[j]]) by_next.emplace(next[i][j], blocks[j]);
    }
    while (by_next.size() > capacity_blocks) {
      const auto latest = std::prev(by_next.end());
      held[latest->second] = false;
      by_next.erase(latest);
    }
    const bool second = trace[i].time_s >= half_s;
    for (HitCount* count : {&result.whole, second ? &result.second_half : nullptr}) {
      if (count == nullptr) continue;
      count->blocks += static_cast<double>(blocks.size());
      count->hits += static_cast<double>(hits);
    }
  }
  return result;
}

}  // namespace oscarkv::bench
