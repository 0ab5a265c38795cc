#include "tests/client/page_path_contract.h"

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"

#include "kernels/base/checksum.h"
#include "server/config/load.h"
#include "tests/support/status_matchers.h"
#include "tests/support/store_pages.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr absl::Duration kDeadline = absl::Seconds(60);  // of what should happen at once

NamespaceSpec WideSpec() {
  NamespaceSpec spec;
  spec.model = "page path contract";
  spec.geometry = {
      .layers = 2, .kv_heads = 2, .k_head_dim = 16, .v_head_dim = 16, .page_tokens = 4};
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = 0;
  return spec;
}

// Of what NCCL brings at once: some of the pages.
constexpr comm::SlotShape kSlots = {.slots = 2, .slot_bytes = 5 << 10};

std::string Name(DataPath path) { return std::string(DataPathName(path)); }

}  // namespace

// --- RecordingSink ---

std::vector<BlockRange> RecordingSink::LayerGroups(BlockRange layers) const {
  std::vector<BlockRange> groups;
  for (uint32_t i = 0; i < layers.count; ++i) groups.push_back({layers.first + i, 1});
  return groups;
}

absl::StatusOr<MutableByteView> RecordingSink::Room(uint32_t page, Encoding, BlockRange layers,
                                                    uint64_t count) {
  at_ = {layers.first, page};
  filled_ = 0;
  bytes[at_].resize(count);
  return MutableByteView(bytes[at_]);
}

void RecordingSink::Filled(uint64_t count) {
  EXPECT_GT(count, filled_);
  EXPECT_LT(count, bytes[at_].size());
  filled_ = count;
}

absl::Status RecordingSink::Take(std::span<const uint32_t> block_crc32c) {
  const std::vector<std::byte>& page = bytes[at_];
  const size_t block = page.size() / block_crc32c.size();
  for (size_t i = 0; i < block_crc32c.size(); ++i)
    EXPECT_EQ(Crc32c(ByteView(page).subspan(i * block, block)), block_crc32c[i]);
  taken.push_back(at_);
  return on_take(at_.second);
}

// --- PagePathContract ---

PagePathContract::PagePathContract()
    : spec_(WideSpec()),
      slots_(size_t{kPages} * spec_.geometry.page_tokens),
      source_(spec_.geometry),
      destination_(spec_.geometry),
      untouched_(spec_.geometry),
      world_(GetParam().make(path())) {
  for (uint32_t i = 0; i < kPages; ++i) keys_.push_back(KeyOf(i));
  std::iota(slots_.begin(), slots_.end(), 0);
  source_.FillRandom(1);
  StartServer();
  client_ = NewClient(world_->options());
  space_ = Open(*client_);
}

PagePathContract::~PagePathContract() {
  for (std::thread& thread : threads_) thread.join();
}

void PagePathContract::StartServer() {
  v1::ServerConfig config;
  config.add_listen(absl::StrCat("unix:", folder_.file("socket")));
  config.set_metrics_listen("off");
  config.set_log_level("error");
  config.mutable_host()->set_capacity("16MiB");
  config.mutable_paths()->add_fetch(Name(path()));  // and nothing to fall back to
  config.mutable_paths()->add_push(Name(path()));
  if (OfDevices()) {
    config.mutable_gpu()->set_capacity("64MiB");
    config.mutable_gpu()->set_staging("16MiB");
    config.mutable_gpu()->set_required(true);
  }
  config = WithDefaults(std::move(config), /*memory_bytes=*/1 << 30);
  ASSERT_OK(CheckConfig(config));
  world_->Start(config);
}

std::unique_ptr<client::Client> PagePathContract::NewClient(client::ClientOptions options) const {
  options.endpoint = absl::StrCat("unix:", folder_.file("socket"));
  auto client = client::Client::Create(options);
  EXPECT_OK(client.status());
  return *std::move(client);
}

std::unique_ptr<client::Namespace> PagePathContract::Open(client::Client& client) const {
  auto space = client.OpenNamespace(spec_, "");
  EXPECT_OK(space.status());
  return *std::move(space);
}

std::unique_ptr<DeviceSinkAround> PagePathContract::Around(client::PageSink& sink) const {
  return std::make_unique<DeviceSinkAround>(sink, world_->NewDevice(), world_->NewFabric(), kSlots);
}

absl::StatusOr<client::PushReport> PagePathContract::PushFrom(client::Namespace& space,
                                                              client::PageSource& source) {
  if (!OfDevices()) return space.PushFrom(source, {.keys = keys_});
  DeviceSourceAround device(source, world_->NewDevice(), world_->NewFabric(), kSlots.slot_bytes);
  return space.PushFrom(device, {.keys = keys_});
}

absl::StatusOr<client::PushReport> PagePathContract::Push(client::Namespace& space,
                                                          const EngineView& cache) {
  if (!OfDevices()) return space.Push(cache, PushOfAll());
  client::CpuPageSource source(space.codec(), cache, slots_, kSlots.slot_bytes);
  return PushFrom(space, source);
}

client::PushReport PagePathContract::Push() {
  auto report = Push(*space_, source_.view());
  EXPECT_OK(report.status());
  if (!report.ok()) return {};
  AwaitCopies(static_cast<uint64_t>(std::count_if(
      report->statuses.begin(), report->statuses.end(),
      [](ItemStatus s) { return s == ItemStatus::kOk || s == ItemStatus::kExists; })));
  return *std::move(report);
}

// CUDA IPC brings pages that the GPU tier has copies of: soon after a push.
void PagePathContract::AwaitCopies(uint64_t pages) {
  if (path() != DataPath::kIpc) return;
  const absl::Time deadline = absl::Now() + kDeadline;
  for (uint64_t found = 0; found < pages; std::this_thread::yield()) {
    ASSERT_LT(absl::Now(), deadline) << found << " pages are copied";
    RecordingSink sink(kPages);
    const auto report = FetchTo(sink, {});
    ASSERT_OK(report.status());
    found = report->pages;
  }
}

absl::StatusOr<client::FetchReport> PagePathContract::FetchTo(client::PageSink& sink,
                                                              client::FetchRequest request) {
  request.keys = keys_;
  if (!OfDevices()) return space_->FetchTo(sink, request);
  return space_->FetchTo(*Around(sink), request);
}

absl::StatusOr<client::FetchReport> PagePathContract::Fetch(client::Namespace& space,
                                                            const EngineView& cache) {
  if (!OfDevices()) return space.Fetch(cache, FetchOfAll());
  client::CpuPageSink host(space.codec(), cache, slots_);
  return space.FetchTo(*Around(host), {.keys = keys_});
}

client::FetchReport PagePathContract::Fetch() {
  auto report = Fetch(*space_, destination_.view());
  EXPECT_OK(report.status());
  return report.ok() ? *std::move(report) : client::FetchReport();
}

std::unique_ptr<client::PendingFetch> PagePathContract::StartFetch(
    const EngineView& cache, client::StartFetchOptions options) {
  if (!OfDevices()) return space_->StartFetch(cache, FetchOfAll(), std::move(options));
  ends_.push_back(std::make_unique<Ends>(*this, cache));
  return space_->StartFetchTo(*ends_.back()->device, {.keys = keys_}, std::move(options));
}

void PagePathContract::PushAsync(std::function<void(absl::StatusOr<client::PushReport>)> done) {
  if (!OfDevices()) {
    EXPECT_TRUE(space_->PushAsync(source_.view(), PushOfAll(), std::move(done)));
    return;
  }
  threads_.emplace_back([this, done = std::move(done)] { done(Push(*space_, source_.view())); });
}

void PagePathContract::FetchAsync(const EngineView& cache,
                                  std::function<void(absl::StatusOr<client::FetchReport>)> done) {
  if (!OfDevices()) return space_->FetchAsync(cache, FetchOfAll(), std::move(done));
  threads_.emplace_back([this, cache, done = std::move(done)] { done(Fetch(*space_, cache)); });
}

namespace {

TEST_P(PagePathContract, WhatIsPushedIsFetched) {
  const client::PushReport pushed = Push();
  EXPECT_OK(pushed.store);
  EXPECT_THAT(pushed.statuses, Each(ItemStatus::kOk));
  EXPECT_EQ(pushed.path, path());
  const client::FetchReport fetched = Fetch();
  EXPECT_OK(fetched.store);
  EXPECT_EQ(fetched.pages, kPages);
  EXPECT_EQ(fetched.path, path());
  EXPECT_EQ(fetched.bytes_wire, pushed.bytes_wire);
  EXPECT_TRUE(destination_.SameRows(source_, 0, static_cast<int64_t>(slots_.size())));
  EXPECT_THAT(Push().statuses, Each(ItemStatus::kExists));
}

TEST_P(PagePathContract, PagesComeInOrderAndOnce) {
  Push();
  RecordingSink sink(kPages);
  const auto report = FetchTo(sink, {});
  ASSERT_OK(report.status());
  EXPECT_EQ(report->pages, kPages);
  std::vector<RecordingSink::Part> expected;
  for (uint32_t layer = 0; layer < 2; ++layer)
    for (uint32_t page = 0; page < kPages; ++page) expected.emplace_back(layer, page);
  EXPECT_EQ(sink.taken, expected);
}

TEST_P(PagePathContract, PartsOfPages) {
  Push();
  RecordingSink whole(kPages);
  RecordingSink layer(kPages);
  ASSERT_OK(FetchTo(whole, {}).status());
  const auto report = FetchTo(layer, {.layers = {1, 1}});
  ASSERT_OK(report.status());
  ASSERT_EQ(report->pages, kPages);
  EXPECT_EQ(report->path, path());
  ASSERT_EQ(layer.bytes.size(), kPages);
  for (const auto& [at, bytes] : layer.bytes) EXPECT_EQ(bytes, whole.bytes.at(at));
  if (OfDevices()) return;  // single heads go between host memories
  RecordingSink part(kPages);
  ASSERT_OK(FetchTo(part, {.layers = {1, 1}, .heads = {1, 1}}).status());
  ASSERT_EQ(part.bytes.size(), kPages);
  for (const auto& [at, bytes] : part.bytes) {
    const std::vector<std::byte>& both = layer.bytes.at(at);
    ASSERT_EQ(bytes.size() * 2, both.size());
    EXPECT_TRUE(std::equal(bytes.rbegin(), bytes.rend(), both.rbegin()));
  }
}

TEST_P(PagePathContract, AHoleEndsTheFetch) {
  Push();
  keys_[5] = KeyOf(1000);
  const client::FetchReport report = Fetch();
  EXPECT_OK(report.store);
  EXPECT_EQ(report.pages, 5);
  EXPECT_EQ(report.statuses[4], ItemStatus::kOk);
  EXPECT_EQ(report.statuses[5], ItemStatus::kMiss);
  EXPECT_THAT(std::vector(report.statuses.begin() + 6, report.statuses.end()),
              Each(ItemStatus::kSkipped));
  EXPECT_TRUE(destination_.SameRows(source_, 0, 20));
  EXPECT_TRUE(destination_.SameRows(untouched_, 20, 64));
}

// Pages of zeros, of which one is not what its checksums say.
class DamagedSource final : public client::PageSource {
 public:
  DamagedSource(const PageLayout& layout, uint32_t pages, uint32_t damaged)
      : pages_(pages),
        bytes_(layout.page_bytes() * pages),
        crcs_(pages,
              std::vector<uint32_t>(4, Crc32c(ByteView(bytes_).first(layout.page_bytes() / 4)))) {
    for (uint32_t page = 0; page < pages; ++page) {
      encoded_.push_back({Encoding::kWide,
                          ByteView(bytes_).subspan(page * layout.page_bytes(), layout.page_bytes()),
                          crcs_[page]});
    }
    crcs_[damaged][1] ^= 1;
  }
  uint64_t pages() const override { return pages_; }
  absl::StatusOr<std::span<const client::EncodedPage>> Encode(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport*) override {
    return std::span<const client::EncodedPage>(encoded_).subspan(first, encodings.size());
  }

 private:
  const uint32_t pages_;
  std::vector<std::byte> bytes_;
  std::vector<std::vector<uint32_t>> crcs_;
  std::vector<client::EncodedPage> encoded_;
};

TEST_P(PagePathContract, ADamagedPageIsRefusedAndThoseBeforeItAreThere) {
  DamagedSource source(space_->codec().layout(Encoding::kWide), kPages, /*damaged=*/2);
  const auto pushed = PushFrom(*space_, source);
  ASSERT_OK(pushed.status());
  EXPECT_OK(pushed->store);
  EXPECT_THAT(std::vector(pushed->statuses.begin(), pushed->statuses.begin() + 3),
              ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kCorrupt));
  EXPECT_THAT(pushed->messages[2], HasSubstr("layer 0, head 1: expected crc32c"));
  AwaitCopies(2);
  EXPECT_EQ(Fetch().pages, 2);
}

TEST_P(PagePathContract, AnErrorOfTheSinkEndsTheFetch) {
  Push();
  RecordingSink sink(kPages);
  sink.on_take = [](uint32_t page) {
    return page == 3 ? absl::InternalError("no room") : absl::OkStatus();
  };
  EXPECT_EQ(FetchTo(sink, {}).status(), absl::InternalError("no room"));
  EXPECT_EQ(sink.taken.size(), 4);
  EXPECT_EQ(sink.abandoned, 1);
  EXPECT_EQ(Fetch().pages, kPages);
}

TEST_P(PagePathContract, DeadlinesEndCalls) {
  Push();
  const auto hasty =
      NewClient({.fetch_timeout = absl::Microseconds(1), .push_timeout = absl::Microseconds(1)});
  const auto space = Open(*hasty);
  const auto fetched = Fetch(*space, destination_.view());
  ASSERT_OK(fetched.status());
  EXPECT_TRUE(absl::IsDeadlineExceeded(fetched->store)) << fetched->store;
  EXPECT_EQ(fetched->pages, 0);
  const auto pushed = Push(*space, source_.view());
  ASSERT_OK(pushed.status());
  EXPECT_TRUE(absl::IsDeadlineExceeded(pushed->store)) << pushed->store;
  EXPECT_EQ(hasty->path(Direction::kFetch).fallbacks, 0);  // time says nothing about the path
  EXPECT_EQ(Fetch().pages, kPages);
}

// By a call, by the object that is waited on, and by a descriptor that becomes readable.
TEST_P(PagePathContract, LayersComeOneAfterTheOtherAndAreTold) {
  Push();
  std::vector<std::pair<uint32_t, uint32_t>> told;  // first layer, pages; by the fetch's own thread
  std::atomic<int> ends = 0;
  const auto pending =
      StartFetch(destination_.view(),
                 {.layers_at_once = 1,
                  .on_layers = [&](BlockRange layers,
                                   uint32_t pages) { told.emplace_back(layers.first, pages); },
                  .done = [&](const absl::StatusOr<client::FetchReport>&) { ++ends; }});
  for (uint32_t layer = 0; layer < 2; ++layer)
    EXPECT_THAT(pending->AwaitLayer(layer, kDeadline), IsOkAndHolds(kPages)) << layer;
  pollfd readable = {.fd = pending->event_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&readable, 1, static_cast<int>(absl::ToInt64Milliseconds(kDeadline))), 1);
  const auto report = pending->Await(kDeadline);
  ASSERT_OK(report.status());
  EXPECT_OK(report->store);
  EXPECT_EQ(report->path, path());
  EXPECT_EQ(report->pages, kPages);
  EXPECT_THAT(told, ElementsAre(Pair(0, kPages), Pair(1, kPages)));
  EXPECT_EQ(ends, 1);
  EXPECT_TRUE(destination_.SameRows(source_, 0, static_cast<int64_t>(slots_.size())));
}

TEST_P(PagePathContract, APathThatIsForbiddenIsNotTaken) {
  Push();
  std::vector<DataPath> others;
  for (const DataPath path : kDataPaths)
    if (path != PagePathContract::path()) others.push_back(path);
  const auto forbidding = NewClient({.fetch_paths = others, .push_paths = others});
  const auto space = Open(*forbidding);
  const auto fetched = Fetch(*space, destination_.view());
  ASSERT_OK(fetched.status());
  EXPECT_FALSE(fetched->store.ok());
  EXPECT_EQ(fetched->pages, 0);
  keys_[0] = KeyOf(1000);
  const auto pushed = Push(*space, source_.view());
  ASSERT_OK(pushed.status());
  EXPECT_FALSE(pushed->store.ok());
  EXPECT_THAT(pushed->statuses, Each(ItemStatus::kSkipped));
}

TEST_P(PagePathContract, ACancelledFetchBringsNothingMore) {
  Push();
  absl::Notification begun;
  absl::Notification cancelled;
  std::atomic<uint32_t> later = 0;  // pages of layers that came afterwards
  std::atomic<int> ends = 0;
  const auto pending = StartFetch(
      destination_.view(), {.layers_at_once = 1,
                            .on_layers =
                                [&](BlockRange, uint32_t pages) {
                                  if (begun.HasBeenNotified()) {
                                    later += pages;
                                    return;
                                  }
                                  begun.Notify();
                                  cancelled.WaitForNotification();
                                },
                            .done = [&](const absl::StatusOr<client::FetchReport>&) { ++ends; }});
  ASSERT_TRUE(begun.WaitForNotificationWithTimeout(kDeadline));
  pending->Cancel();
  cancelled.Notify();
  const auto report = pending->Await(kDeadline);
  ASSERT_OK(report.status());
  EXPECT_TRUE(absl::IsCancelled(report->store)) << report->store;
  EXPECT_EQ(later, 0);
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(Fetch().pages, kPages);
}

TEST_P(PagePathContract, ManyAtOnceEndOnceEach) {
  Push();
  const size_t calls = world_->calls_at_once();
  std::vector<int> ends(calls);  // each written by its own call, and read after all
  std::vector<uint32_t> pages(calls);
  std::vector<WorkerCache> caches;
  for (size_t i = 0; i < calls; ++i) caches.emplace_back(spec_.geometry);
  absl::BlockingCounter left(static_cast<int>(calls));
  for (size_t i = 0; i < calls; ++i) {
    const auto end = [&, i](const auto& report) {
      ++ends[i];
      EXPECT_OK(report.status());
      if (report.ok()) {
        EXPECT_OK(report->store) << client_->path(Direction::kFetch).reason << "; "
                                 << client_->path(Direction::kPush).reason;
      }
      if (report.ok() && report->store.ok())
        pages[i] = static_cast<uint32_t>(kPages - std::count(report->statuses.begin(),
                                                             report->statuses.end(),
                                                             ItemStatus::kSkipped));
      left.DecrementCount();
    };
    if (i % 3 == 0) {
      PushAsync(end);
    } else {
      FetchAsync(caches[i].view(), end);
    }
  }
  left.Wait();
  EXPECT_THAT(ends, Each(1));
  EXPECT_THAT(pages, Each(kPages));
  for (size_t i = 0; i < calls; ++i)
    EXPECT_TRUE(caches[i].SameRows(i % 3 == 0 ? untouched_ : source_, 0, 64));
}

TEST_P(PagePathContract, AServerThatIsGoneIsAMissAndOneThatComesBackIsFound) {
  Push();
  ASSERT_EQ(Fetch().pages, kPages);
  world_->Stop();
  destination_ = WorkerCache(spec_.geometry);
  client::FetchReport report = Fetch();
  EXPECT_FALSE(report.store.ok());
  EXPECT_EQ(report.pages, 0);
  EXPECT_TRUE(destination_.SameRows(untouched_, 0, 64));
  EXPECT_FALSE(Push().store.ok());
  StartServer();
  const absl::Time deadline = absl::Now() + kDeadline;
  while (!(report = Fetch()).store.ok()) ASSERT_LT(absl::Now(), deadline) << report.store;
  EXPECT_EQ(report.pages, 0);  // it has nothing
  EXPECT_THAT(Push().statuses, Each(ItemStatus::kOk));
  report = Fetch();
  EXPECT_EQ(report.pages, kPages);
  EXPECT_EQ(report.path, path());
}

}  // namespace

std::string NameOf(const ::testing::TestParamInfo<PathCase>& path) { return Name(path.param.path); }

}  // namespace oscarkv::testing
