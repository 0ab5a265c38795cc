#include "tests/tier/disk/block_io_contract.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kFileBytes = 4 << 20;

// An open file of kFileBytes in a folder of its own.
struct File {
  ScopedFolder folder;
  int descriptor;

  explicit File(int flags = O_RDWR)
      : descriptor(open(folder.file("data").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    EXPECT_EQ(ftruncate(descriptor, kFileBytes), 0);
    if (flags != O_RDWR) {
      close(descriptor);
      descriptor = open(folder.file("data").c_str(), flags | O_CLOEXEC);
    }
  }
  ~File() { close(descriptor); }
};

void Fill(MutableByteView bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
}
bool Holds(ByteView bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  return std::ranges::all_of(
      bytes, [&](std::byte byte) { return byte == static_cast<std::byte>(random()); });
}

using Body = std::function<void(BlockIo&)>;

class ContractTest : public ::testing::Test {
 public:
  ContractTest(IoUnderTest io, Body body) : io_(std::move(io)), body_(std::move(body)) {}
  void TestBody() override {
    const std::unique_ptr<BlockIo> io = io_.make();
    if (io == nullptr) GTEST_SKIP() << io_.name << ": this machine's kernel refuses it";
    body_(*io);
  }

 private:
  const IoUnderTest io_;
  const Body body_;
};

// `count` requests of different sizes, one behind the other from the file's start.
std::vector<IoRequest> Requests(IoKind kind, const File& file, const AlignedBuffer& memory,
                                size_t count) {
  std::vector<IoRequest> requests;
  uint64_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t bytes = kIoAlignment * (1 + i % 5);
    requests.push_back({.kind = kind,
                        .file = file.descriptor,
                        .offset = at,
                        .data = memory.bytes().subspan(at, bytes),
                        .status = absl::UnknownError("has not ended")});
    at += bytes;
  }
  return requests;
}

void ReadsWhatWasWritten(BlockIo& io) {
  const File file;
  const AlignedBuffer out(kFileBytes);
  const AlignedBuffer in(kFileBytes);
  Fill(out.bytes(), 1);
  // More than are under way at once.
  constexpr size_t kCount = 200;
  std::vector<IoRequest> writes = Requests(IoKind::kWrite, file, out, kCount);
  io.Run(writes);
  for (const IoRequest& write : writes) ASSERT_OK(write.status);
  ASSERT_OK(io.Sync(file.descriptor));
  std::vector<IoRequest> reads = Requests(IoKind::kRead, file, in, kCount);
  std::set<const IoRequest*> ended;
  io.Run(reads, [&](IoRequest& read) {
    EXPECT_OK(read.status);
    EXPECT_TRUE(ended.insert(&read).second);
  });
  EXPECT_EQ(ended.size(), kCount);
  const uint64_t bytes = reads.back().offset + reads.back().data.size();
  EXPECT_TRUE(std::ranges::equal(in.bytes().first(bytes), out.bytes().first(bytes)));
}

void NoRequestsEndAtOnce(BlockIo& io) {
  io.Run({});
  EXPECT_EQ(io.Stats().reads + io.Stats().writes, 0u);
}

void CountsRequestsAndBytes(BlockIo& io) {
  const File file;
  const AlignedBuffer memory(kFileBytes);
  Fill(memory.bytes(), 2);
  std::vector<IoRequest> writes = Requests(IoKind::kWrite, file, memory, 3);
  io.Run(writes);
  std::vector<IoRequest> reads = Requests(IoKind::kRead, file, memory, 2);
  io.Run(reads);
  ASSERT_OK(io.Sync(file.descriptor));
  const IoStats stats = io.Stats();
  EXPECT_EQ(stats.writes, 3u);
  EXPECT_EQ(stats.written_bytes, 6 * kIoAlignment);
  EXPECT_EQ(stats.reads, 2u);
  EXPECT_EQ(stats.read_bytes, 3 * kIoAlignment);
  EXPECT_EQ(stats.syncs, 1u);
  EXPECT_EQ(stats.read_errors + stats.write_errors, 0u);
}

void EndOfTheFileIsDataLoss(BlockIo& io) {
  const File file;
  const AlignedBuffer memory(4 * kIoAlignment);
  IoRequest reads[] = {{.file = file.descriptor,
                        .offset = kFileBytes,
                        .data = memory.bytes().first(kIoAlignment),
                        .status = {}},
                       {.file = file.descriptor,
                        .offset = kFileBytes - kIoAlignment,
                        .data = memory.bytes().subspan(kIoAlignment, 2 * kIoAlignment),
                        .status = {}},
                       {.file = file.descriptor,
                        .offset = 0,
                        .data = memory.bytes().last(kIoAlignment),
                        .status = {}}};
  io.Run(reads);
  EXPECT_THAT(reads[0].status, StatusIs(absl::StatusCode::kDataLoss,
                                        "read of 4096 bytes at 4194304: ended after 0"));
  EXPECT_THAT(reads[1].status, StatusIs(absl::StatusCode::kDataLoss,
                                        "read of 8192 bytes at 4190208: ended after 4096"));
  EXPECT_OK(reads[2].status);
  EXPECT_EQ(io.Stats().read_errors, 2u);
}

void ErrorsSayWhatFailed(BlockIo& io) {
  const File file(O_RDONLY);
  const AlignedBuffer memory(kIoAlignment);
  IoRequest write{.kind = IoKind::kWrite,
                  .file = file.descriptor,
                  .offset = 8192,
                  .data = memory.bytes(),
                  .status = {}};
  io.Run({&write, 1});
  EXPECT_THAT(write.status, StatusIs(absl::StatusCode::kUnavailable,
                                     "write of 4096 bytes at 8192: Bad file descriptor"));
  EXPECT_EQ(io.Stats().write_errors, 1u);
}

void AllocateTakesTheSpace(BlockIo& io) {
  const File file;
  ASSERT_OK(io.Allocate(file.descriptor, 2 * kFileBytes));
  struct stat info {};
  ASSERT_EQ(fstat(file.descriptor, &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), 2 * kFileBytes);
  EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, 2 * kFileBytes);
  EXPECT_FALSE(io.Allocate(-1, kFileBytes).ok());
  EXPECT_EQ(io.Stats().write_errors, 1u);
}

void ThreadsRunBesideEachOther(BlockIo& io) {
  constexpr size_t kThreads = 10;  // more than there are rings
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads, 0);
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&io, &wrong, t] {
      const File file;
      const AlignedBuffer memory(1 << 20);
      for (uint64_t round = 0; round < 3; ++round) {
        Fill(memory.bytes(), t * 10 + round);
        std::vector<IoRequest> requests = Requests(IoKind::kWrite, file, memory, 80);
        const uint64_t bytes = requests.back().offset + requests.back().data.size();
        io.Run(requests);
        Fill(memory.bytes(), 999);
        for (IoRequest& request : requests) request.kind = IoKind::kRead;
        io.Run(requests);
        if (!Holds(memory.bytes().first(bytes), t * 10 + round)) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

}  // namespace

int RegisterBlockIoContract(const IoUnderTest& io) {
  const std::pair<const char*, Body> bodies[] = {
      {"ReadsWhatWasWritten", ReadsWhatWasWritten},
      {"NoRequestsEndAtOnce", NoRequestsEndAtOnce},
      {"CountsRequestsAndBytes", CountsRequestsAndBytes},
      {"EndOfTheFileIsDataLoss", EndOfTheFileIsDataLoss},
      {"ErrorsSayWhatFailed", ErrorsSayWhatFailed},
      {"AllocateTakesTheSpace", AllocateTakesTheSpace},
      {"ThreadsRunBesideEachOther", ThreadsRunBesideEachOther},
  };
  const std::string suite = "BlockIoContract/" + io.name;
  for (const auto& [name, body] : bodies) {
    ::testing::RegisterTest(
        suite.c_str(), name, nullptr, nullptr, __FILE__, __LINE__,
        [io, body = body]() -> ContractTest* { return new ContractTest(io, body); });
  }
  return 0;
}

}  // namespace oscarkv::testing
