#include "server/core/re_encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <numeric>
#include <utility>

#include "kernels/base/bytes.h"
#include "kernels/codec/oscar/format.h"

namespace oscarkv {
namespace {

// Rests are taken together, so that a sleep is worth its switch.
constexpr absl::Duration kRestMin = absl::Milliseconds(2);

absl::Duration ThreadCpuTime() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

// ||a - b|| / ||a|| of rows of one side, summed up block by block.
struct RelativeError {
  double difference = 0.0;
  double norm = 0.0;

  void Add(const std::byte* a, const std::byte* b, DType dtype, uint64_t elements) {
    for (uint64_t i = 0; i < elements; ++i) {
      const auto exact = static_cast<double>(LoadElement(a + i * DTypeBytes(dtype), dtype));
      const auto read = static_cast<double>(LoadElement(b + i * DTypeBytes(dtype), dtype));
      difference += (exact - read) * (exact - read);
      norm += exact * exact;
    }
  }
  // 0 where there is nothing to be wrong about.
  double Value() const { return norm > 0.0 ? std::sqrt(difference / norm) : 0.0; }
};

}  // namespace

bool ReEncoder::Step() {
  std::optional<Taken> taken = Take();
  return taken.has_value() && Finish(*std::move(taken));
}

std::optional<ReEncoder::Taken> ReEncoder::Take() {
  PageStore::WidePage wide = store_.TakeWide();
  if (!wide.page) return std::nullopt;
  return Taken{std::move(wide.page), wide.codec};
}

bool ReEncoder::Finish(Taken taken) {
  const absl::Duration begin = ThreadCpuTime();
  const auto finish = [&](bool go_on) {
    const absl::Duration worked = ThreadCpuTime() - begin;
    absl::MutexLock lock(&store_.tree_mutex_);
    store_.ladder_stats_.cpu_ns += static_cast<uint64_t>(absl::ToInt64Nanoseconds(worked));
    return go_on;
  };
  const PinnedPage& wide = taken.page;
  // What has rotted is dropped by this.
  if (!wide.VerifyAll(CorruptAt::kMove).ok()) return finish(true);
  const absl::StatusOr<TierSlot> slot = store_.ReservePacked(wide);
  if (!slot.ok()) {
    store_.KeepWide(wide, std::nullopt);
    return finish(false);
  }
  const Encoded encoded = Encode(*taken.codec, wide, store_.tier_->Map(*slot));
  if (encoded.stays.has_value()) {
    store_.tier_->Release(*slot);
    store_.KeepWide(wide, encoded.stays);
    return finish(true);
  }
  if (store_.SwapForm(wide, *slot)) {
    absl::MutexLock lock(&store_.tree_mutex_);
    store_.ladder_stats_.k_error.Record(encoded.errors.k);
    store_.ladder_stats_.v_error.Record(encoded.errors.v);
  }
  return finish(true);
}

ReEncoder::Encoded ReEncoder::Encode(const PageCodec& codec, const PinnedPage& wide,
                                     MutableByteView slot) {
  const Geometry& geometry = codec.geometry();
  const uint64_t page_bytes = codec.layout(Encoding::kPacked).page_bytes();
  std::vector<std::byte*> bases(2 * geometry.layers);
  std::vector<int64_t> slots(geometry.page_tokens);
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<uint32_t> crcs(geometry.blocks());
  const EncodeItem item{.encoding = Encoding::kPacked,
                        .slots = slots,
                        .page = slot.first(page_bytes),
                        .block_crc32c = crcs};
  EncodeReport report;
  const absl::Status done =
      codec.Encode(WidePageView(wide.layout(), wide.slot_, bases), {&item, 1}, &report);
  if (!done.ok()) return {.stays = StaysWide::kRefused, .errors = {}};
  if (report.nonfinite_rows > 0) return {.stays = StaysWide::kNonFinite, .errors = {}};
  if (report.overflow_rows > 0) return {.stays = StaysWide::kOverflow, .errors = {}};
  const ByteView sums = std::as_bytes(std::span(crcs));
  std::copy(sums.begin(), sums.end(), slot.begin() + static_cast<std::ptrdiff_t>(page_bytes));
  return {.stays = std::nullopt, .errors = Compare(codec, wide, slot)};
}

ReEncoder::Errors ReEncoder::Compare(const PageCodec& codec, const PinnedPage& wide,
                                     MutableByteView slot) {
  const Geometry& geometry = codec.geometry();
  const PageLayout& packed = codec.layout(Encoding::kPacked);
  const PageLayout& layout = wide.layout();
  const auto layer = static_cast<uint32_t>(layer_turn_++ % geometry.layers);
  const BlockRange layers{layer, 1};
  const BlockRange heads{0, geometry.kv_heads};
  std::vector<std::byte*> bases(2 * geometry.layers);
  std::vector<int64_t> slots(geometry.page_tokens);
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<uint32_t> crcs(geometry.kv_heads);
  std::memcpy(crcs.data(), slot.data() + packed.page_bytes() + uint64_t{layer} * heads.count * 4,
              crcs.size() * 4);
  decoded_.resize(layout.page_bytes());
  DecodeItem item{
      .encoding = Encoding::kPacked,
      .layers = layers,
      .heads = heads,
      .slots = slots,
      .bytes = slot.subspan(packed.block_offset(layer, 0), packed.range_bytes(layers, heads)),
      .block_crc32c = crcs,
      .result = {}};
  const absl::Status done =
      codec.Decode({&item, 1}, codec.engine_basis(), WidePageView(layout, decoded_, bases));
  // What was encoded a moment ago and cannot be read back is wrong altogether.
  if (!done.ok() || !item.result.ok()) return {1.0, 1.0};
  RelativeError k;
  RelativeError v;
  for (uint32_t head = 0; head < heads.count; ++head) {
    const uint64_t offset = layout.block_offset(layer, head);
    const BlockLayout& block = layout.block(layer);
    const auto add = [&](RelativeError* error, const SideLayout& side) {
      error->Add(wide.slot_.data() + offset + side.rows_offset,
                 decoded_.data() + offset + side.rows_offset, geometry.dtype,
                 uint64_t{geometry.page_tokens} * side.dim);
    };
    add(&k, block.k);
    add(&v, block.v);
  }
  return {k.Value(), v.Value()};
}

// --- Threads ---

ReEncodePool::ReEncodePool(PageStore& store, const ReEncodePoolOptions& options) : store_(store) {
  const double threads = std::ceil(options.max_cores);
  for (double i = 0; i < threads; ++i)
    threads_.emplace_back([this, share = options.max_cores / threads] { Run(share); });
}

ReEncodePool::~ReEncodePool() {
  store_.reencode_bell().Stop();
  for (std::thread& thread : threads_) thread.join();
}

absl::Duration ReEncodePool::RestAfter(absl::Duration worked, double share) {
  return share >= 1.0 ? absl::ZeroDuration() : worked * (1.0 / share - 1.0);
}

void ReEncodePool::Run(double share) {
  ReEncoder encoder(store_);
  Bell& bell = store_.reencode_bell();
  uint64_t heard = 0;
  absl::Duration rested_at = ThreadCpuTime();
  while (bell.Await(&heard)) {
    while (encoder.Step()) {
      const absl::Duration now = ThreadCpuTime();
      const absl::Duration rest = RestAfter(now - rested_at, share);
      if (rest < kRestMin) {
        if (bell.stopped()) return;
        continue;
      }
      if (!bell.Pause(rest)) return;
      rested_at = now;
    }
  }
}

}  // namespace oscarkv
