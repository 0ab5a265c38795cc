// The disk store's bandwidth and its opening, for tests/bench/run.py, which runs fio beside it.
//
//   disk_bench write FOLDER PAGE_BYTES PAGES    fills a new store; durable when it says so
//   disk_bench read FOLDER PAGE_BYTES READS     reads pages at random, verified
//   disk_bench open FOLDER                      opens it: the index from its tables
//
// Prints one JSON object. The folder takes 2 GiB.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "server/tier/disk/disk_store.h"

namespace oscarkv {
namespace {

constexpr uint64_t kCapacityBytes = (uint64_t{2} << 30) + (1 << 20);
constexpr uint64_t kSequencePages = 32;
constexpr uint64_t kBatchBytes = 64 << 20;  // of writes
constexpr uint64_t kReadBytes = 256
                                << 20;  // at once: the queue is as deep as it may be nearly always

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "disk_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

std::unique_ptr<DiskStore> Open(const std::string& folder) {
  auto chosen = MakeBlockIo(IoBackend::kAuto);
  if (!chosen.ok()) Fail(chosen.status());
  auto store = DiskStore::Open({.directory = {.path = folder,
                                              .owner = "bench",
                                              .capacity_bytes = kCapacityBytes,
                                              .segment_bytes = 256 << 20}},
                               std::move(chosen->io));
  if (!store.ok()) Fail(store.status());
  return *std::move(store);
}

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const std::string kFingerprint(kFingerprintBytes, 'f');
std::string KeyOf(uint64_t number) {
  std::string key(32, 'k');
  std::memcpy(key.data(), &number, sizeof(number));
  return key;
}

// A page's record fills PAGE_BYTES on the disk exactly.
uint64_t BodyBytes(uint64_t page_bytes) { return page_bytes - kPageHeaderBytes; }

// Of this process so far: what it takes on a machine that has much else to do, too.
double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void Report(DiskStore& store, double seconds, uint64_t bytes) {
  const DiskStoreStats stats = store.Stats();
  std::printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"bytes\": %" PRIu64
              ", \"pages\": %" PRIu64 ", \"device_bytes\": %" PRIu64 ", \"index_bytes\": %" PRIu64
              ", \"backend\": \"%s\", \"direct\": %s}\n",
              seconds, CpuSeconds(), bytes, stats.pages, stats.io.written_bytes, stats.index_bytes,
              std::string(stats.backend).c_str(), stats.direct ? "true" : "false");
}

void Write(const std::string& folder, uint64_t page_bytes, uint64_t pages) {
  const std::unique_ptr<DiskStore> store = Open(folder);
  std::vector<std::byte> body(BodyBytes(page_bytes));
  std::mt19937_64 random(1);
  for (std::byte& byte : body) byte = static_cast<std::byte>(random());
  const uint64_t batch = std::max<uint64_t>(1, kBatchBytes / page_bytes);
  std::vector<std::string> keys(pages);
  for (uint64_t i = 0; i < pages; ++i) keys[i] = KeyOf(i);
  const double seconds = Seconds([&] {
    for (uint64_t first = 0; first < pages; first += batch) {
      std::vector<DiskPut> puts;
      for (uint64_t i = first; i < std::min(pages, first + batch); ++i)
        puts.push_back({.fingerprint = kFingerprint,
                        .key = keys[i],
                        .parent = i % kSequencePages == 0 ? std::string_view() : keys[i - 1],
                        .body = body});
      store->Write(puts);
      for (const DiskPut& put : puts)
        if (!put.status.ok()) Fail(put.status);
    }
  });
  Report(*store, seconds, pages * page_bytes);
}

void Read(const std::string& folder, uint64_t page_bytes, uint64_t reads) {
  const std::unique_ptr<DiskStore> store = Open(folder);
  const uint64_t pages = store->Stats().pages;
  const uint64_t batch = std::max<uint64_t>(1, kReadBytes / page_bytes);
  const AlignedBuffer memory(batch * page_bytes);
  std::ranges::fill(memory.bytes(), std::byte{0});  // it is there before the first read
  std::mt19937_64 random(std::random_device{}());
  std::vector<std::string> keys(reads);
  for (std::string& key : keys) key = KeyOf(random() % pages);
  const double seconds = Seconds([&] {
    for (uint64_t first = 0; first < reads; first += batch) {
      std::vector<DiskGet> gets;
      for (uint64_t i = first; i < std::min(reads, first + batch); ++i) {
        gets.push_back({.fingerprint = kFingerprint,
                        .key = keys[i],
                        .buffer = memory.bytes().subspan((i - first) * page_bytes, page_bytes)});
      }
      store->Read(gets);
      for (const DiskGet& get : gets)
        if (!get.status.ok()) Fail(get.status);
    }
  });
  Report(*store, seconds, reads * page_bytes);
}

void Rebuild(const std::string& folder) {
  const std::unique_ptr<DiskStore> store = Open(folder);
  Report(*store, absl::ToDoubleSeconds(store->Stats().recovery), 0);
}

int Main(const std::vector<std::string>& arguments) {
  uint64_t page_bytes = 0;
  uint64_t count = 0;
  const bool sized = arguments.size() == 4 && absl::SimpleAtoi(arguments[2], &page_bytes) &&
                     absl::SimpleAtoi(arguments[3], &count) && page_bytes >= kDiskBlockBytes;
  if (sized && arguments[0] == "write") {
    Write(arguments[1], page_bytes, count);
  } else if (sized && arguments[0] == "read") {
    Read(arguments[1], page_bytes, count);
  } else if (arguments.size() == 2 && arguments[0] == "open") {
    Rebuild(arguments[1]);
  } else {
    std::fprintf(stderr, "usage: disk_bench write|read FOLDER PAGE_BYTES COUNT | open FOLDER\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) { return oscarkv::Main({argv + 1, argv + argc}); }
