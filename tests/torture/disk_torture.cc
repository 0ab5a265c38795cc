// Kills a process that writes pages to a disk store, at moments that nobody chose, opens what it
// left, and holds it against what it had said is durable.
//
//   disk_torture [--kills N] [--seed N] [--folder PATH]
//
// Half of the kills hit a directory with room for everything: there no page may be missing. The
// other half hit one that is full all the time, whose oldest pages go: there a page may be missing,
// and none may be wrong. Exit status 1 if one is.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "tests/support/scoped_folder.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kBytesMax = 150'000;
constexpr uint64_t kBatchMax = 8;
constexpr uint64_t kReportsMax = 60;  // before a kill
constexpr int kWaitMsMax = 15;        // and after them

struct Arguments {
  uint64_t kills = 100;
  uint64_t seed = 0;  // 0: one at random
  std::string folder;
};

uint64_t BytesOf(uint64_t number) { return 16 + number * 7919 % kBytesMax; }

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "disk_torture: %s\n", status.ToString().c_str());
  std::exit(2);
}

std::unique_ptr<DiskStore> Open(const DiskStoreOptions& options, IoBackend backend) {
  auto chosen = MakeBlockIo(backend);
  if (!chosen.ok()) Fail(chosen.status());
  auto store = DiskStore::Open(options, std::move(chosen->io));
  if (!store.ok()) Fail(store.status());
  return *std::move(store);
}

// The writer: pages from `next` on, each reported once it is durable. Never returns.
[[noreturn]] void WriteUntilKilled(const DiskStoreOptions& options, IoBackend backend,
                                   uint64_t next, int report) {
  const std::unique_ptr<DiskStore> store = Open(options, backend);
  std::mt19937_64 random(next);
  for (;;) {
    std::vector<TestDiskPage> pages;
    std::vector<DiskPut> puts;
    const uint64_t count = 1 + random() % kBatchMax;
    for (uint64_t i = 0; i < count; ++i) pages.emplace_back(next + i, BytesOf(next + i));
    for (const TestDiskPage& page : pages) puts.push_back(page.put());
    store->Write(puts);
    for (uint64_t i = 0; i < count; ++i) {
      if (!puts[i].status.ok()) Fail(puts[i].status);
      const uint64_t number = next + i;
      if (write(report, &number, sizeof(number)) != sizeof(number)) std::exit(2);
    }
    next += count;
    // Read now and then, so that pages are kept when their segments go.
    ReadOne(*store, TestKey(next - 1 - random() % std::min<uint64_t>(next, 200)))
        .status.IgnoreError();
  }
}

// A directory and what is known of it.
struct Tortured {
  DiskStoreOptions options;
  bool roomy;
  uint64_t next = 1;                   // number of the next page
  std::vector<uint64_t> acknowledged;  // numbers
  uint64_t kills = 0;
  // Of the last look.
  uint64_t found = 0;
  uint64_t missing = 0;
  // Of all looks.
  uint64_t wrong = 0;
  uint64_t damaged = 0;  // pages that were there in part
};

void KillAWriter(Tortured& tortured, IoBackend backend, std::mt19937_64& random) {
  int ends[2];
  if (pipe(ends) != 0) Fail(absl::InternalError("pipe"));
  const pid_t writer = fork();
  if (writer == 0) {
    close(ends[0]);
    WriteUntilKilled(tortured.options, backend, tortured.next, ends[1]);
  }
  close(ends[1]);
  const auto take = [&] {
    uint64_t number = 0;
    if (read(ends[0], &number, sizeof(number)) != sizeof(number)) return false;
    tortured.acknowledged.push_back(number);
    return true;
  };
  bool alive = true;
  for (uint64_t left = random() % kReportsMax; alive && left > 0; --left) alive = take();
  // Then at some moment: poll looks at nothing.
  if (alive) poll(nullptr, 0, static_cast<int>(random() % kWaitMsMax));
  if (kill(writer, SIGKILL) != 0) Fail(absl::InternalError("kill"));
  while (take()) {
  }
  close(ends[0]);
  int status = 0;
  waitpid(writer, &status, 0);
  if (!WIFSIGNALED(status)) Fail(absl::InternalError("the writer ended by itself"));
  ++tortured.kills;
  // It may have written pages that it did not live to report.
  const uint64_t last = tortured.acknowledged.empty() ? 0 : tortured.acknowledged.back();
  tortured.next = std::max(tortured.next, last + 1) + kBatchMax;
}

void Look(Tortured& tortured, IoBackend backend) {
  const std::unique_ptr<DiskStore> store = Open(tortured.options, backend);
  tortured.found = tortured.missing = 0;
  const auto last = tortured.next;
  std::vector<bool> acknowledged(last, false);
  for (const uint64_t number : tortured.acknowledged) acknowledged[number] = true;
  for (uint64_t number = 1; number < last; ++number) {
    const ReadBack page = ReadOne(*store, TestKey(number));
    if (page.status.ok()) {
      const bool right = page.body == BodyOf(number, BytesOf(number));
      tortured.wrong += right ? 0u : 1u;
      tortured.found += acknowledged[number] && right ? 1u : 0u;
    } else {
      tortured.missing += acknowledged[number] ? 1u : 0u;
      tortured.damaged += absl::IsNotFound(page.status) ? 0u : 1u;
    }
  }
}

// Whether all is well.
bool Report(const Tortured& tortured) {
  std::printf("%s: kills %" PRIu64 ", acknowledged %zu, found %" PRIu64 ", missing %" PRIu64
              ", in part %" PRIu64 ", wrong %" PRIu64 "\n",
              tortured.roomy ? "room for everything" : "full all the time  ", tortured.kills,
              tortured.acknowledged.size(), tortured.found, tortured.missing, tortured.damaged,
              tortured.wrong);
  return tortured.wrong == 0 && tortured.damaged == 0 && (!tortured.roomy || tortured.missing == 0);
}

int Torture(const Arguments& arguments) {
  const uint64_t seed =
      arguments.seed != 0 ? arguments.seed : 1 + std::random_device{}() % 1'000'000;
  std::printf("seed %" PRIu64 "\n", seed);
  std::fflush(stdout);
  std::mt19937_64 random(seed);
  const ScopedFolder scratch;
  const std::string folder = arguments.folder.empty() ? scratch.path() : arguments.folder;
  const uint64_t roomy_segments =
      2 + arguments.kills * (kReportsMax + 4 * kBatchMax) * (kBytesMax / 2) / kTestSegmentBytes;
  Tortured directories[] = {
      {.options = TestOptions(folder + "/roomy", roomy_segments),
       .roomy = true,
       .acknowledged = {}},
      {.options = TestOptions(folder + "/tight", 4), .roomy = false, .acknowledged = {}}};
  for (uint64_t kill = 0; kill < arguments.kills; ++kill) {
    Tortured& tortured = directories[kill % 2];
    const IoBackend backend = kill / 2 % 2 == 0 ? IoBackend::kAuto : IoBackend::kPosix;
    KillAWriter(tortured, backend, random);
    // The tight one after every kill: what it holds is soon gone.
    if (!tortured.roomy || kill + 2 >= arguments.kills) Look(tortured, backend);
  }
  const bool roomy = Report(directories[0]);
  const bool tight = Report(directories[1]);
  return roomy && tight ? 0 : 1;
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  oscarkv::testing::Arguments arguments;
  bool known = argc % 2 == 1;
  for (int i = 1; known && i < argc; i += 2) {
    const absl::string_view name = argv[i];
    if (name == "--folder") {
      arguments.folder = argv[i + 1];
    } else {
      uint64_t* value = name == "--kills" ? &arguments.kills : &arguments.seed;
      known = (name == "--kills" || name == "--seed") && absl::SimpleAtoi(argv[i + 1], value);
    }
  }
  if (!known) {
    std::fprintf(stderr, "usage: disk_torture [--kills N] [--seed N] [--folder PATH]\n");
    return 2;
  }
  return oscarkv::testing::Torture(arguments);
}
