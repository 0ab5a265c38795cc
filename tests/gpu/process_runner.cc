#include "tests/gpu/process_runner.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/device/buffer.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

// In the environment of rank 1: which of the test's runs it is for, and its end of the socket.
constexpr char kRunVariable[] = "OSCARKV_PEER_RUN";
constexpr int kSocket = 3;
constexpr size_t kWordMax = 4096;

class ProcessSide final : public PeerSide {
 public:
  ProcessSide(int rank, comm::PeerFabric* fabric, int socket)
      : rank_(rank), fabric_(fabric), socket_(socket) {}
  ~ProcessSide() override { close(socket_); }

  int rank() const override { return rank_; }
  comm::PeerFabric& fabric() override { return *fabric_; }
  std::byte* Allocate(uint64_t bytes) override {
    auto buffer = device::DeviceBuffer::Allocate(bytes);
    EXPECT_OK(buffer);
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().data();
  }
  void Write(std::byte* to, ByteView bytes) override {
    EXPECT_EQ(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  std::vector<std::byte> Read(const std::byte* from, uint64_t bytes) override {
    std::vector<std::byte> read(bytes);
    EXPECT_EQ(cudaMemcpy(read.data(), from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return read;
  }
  // A packet each; the other side's end is an empty word.
  void Tell(const std::string& word) override {
    EXPECT_EQ(send(socket_, word.data(), word.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(word.size()));
  }
  std::string Hear() override {
    std::string word(kWordMax, '\0');
    const ssize_t count = recv(socket_, word.data(), word.size(), 0);
    word.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return word;
  }
  void Die() override {
    std::fflush(nullptr);
    kill(getpid(), SIGKILL);
  }

 private:
  const int rank_;
  comm::PeerFabric* const fabric_;
  const int socket_;
  std::vector<device::DeviceBuffer> buffers_;
};

pid_t SpawnSelf(const std::vector<std::string>& within, int run, int socket) {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter =
      std::string("--gtest_filter=") + test.test_suite_name() + "." + test.name();
  const std::string variable = std::string(kRunVariable) + "=" + std::to_string(run);
  std::vector<std::string> words = within;
  words.push_back(std::filesystem::read_symlink("/proc/self/exe").string());
  words.insert(words.end(), {filter, "--gtest_brief=1"});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.push_back(const_cast<char*>(variable.c_str()));
  environment.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, socket, kSocket);
  pid_t child = -1;
  EXPECT_EQ(
      posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environment.data()),
      0);
  posix_spawn_file_actions_destroy(&actions);
  return child;
}

}  // namespace

int ProcessRunner::rank() { return std::getenv(kRunVariable) == nullptr ? 0 : 1; }

void ProcessRunner::Run(const std::function<void(PeerSide&)>& body) {
  const int run = runs_++;
  if (rank() == 1) {
    if (std::to_string(run) != std::getenv(kRunVariable)) return;
    fabric_ = make_(1);
    ProcessSide side(1, fabric_.get(), kSocket);
    body(side);
    return;
  }
  if (runs_ == 1) fabric_ = make_(0);
  int ends[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const pid_t child = SpawnSelf(within_, run, ends[1]);
  close(ends[1]);
  {
    ProcessSide side(0, fabric_.get(), ends[0]);
    body(side);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;  // Die
  EXPECT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
      << "rank 1 ended with " << status << "; what it said is above";
}

}  // namespace oscarkv::testing
