// send and recv on a plain socket, nothing else: what any path over a socket has as its ceiling.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/plain_socket.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

// What a request is: `put`, and the range of the other side's memory.
struct Request {
  uint64_t put;
  uint64_t offset;
  uint64_t bytes;
};

absl::Status Answer(const PlainSocket& client, MutableByteView set) {
  while (true) {
    Request request = {};
    OSCARKV_RETURN_IF_ERROR(client.Receive(std::as_writable_bytes(std::span(&request, 1))));
    if (request.offset > set.size() || request.bytes > set.size() - request.offset)
      return absl::OutOfRangeError("past the end of the set");
    const MutableByteView range = set.subspan(request.offset, request.bytes);
    if (request.put != 0) {
      OSCARKV_RETURN_IF_ERROR(client.Receive(range));
      OSCARKV_RETURN_IF_ERROR(client.Send("1"));
    } else {
      OSCARKV_RETURN_IF_ERROR(client.Send(range));
    }
  }
}

class RawSocketPeer final : public TransferPeer {
 public:
  RawSocketPeer(PlainSocket socket, uint32_t page_bytes)
      : socket_(std::move(socket)), page_bytes_(page_bytes) {}

  absl::Status Put(uint64_t first, ByteView pages) override {
    const Request request{.put = 1, .offset = first * page_bytes_, .bytes = pages.size()};
    OSCARKV_RETURN_IF_ERROR(socket_.Send(std::as_bytes(std::span(&request, 1))));
    OSCARKV_RETURN_IF_ERROR(socket_.Send(pages));
    std::byte done = {};
    return socket_.Receive({&done, 1});
  }

  absl::Status Get(uint64_t first, MutableByteView room) override {
    const Request request{.put = 0, .offset = first * page_bytes_, .bytes = room.size()};
    OSCARKV_RETURN_IF_ERROR(socket_.Send(std::as_bytes(std::span(&request, 1))));
    return socket_.Receive(room);
  }

 private:
  const PlainSocket socket_;
  const uint64_t page_bytes_;
};

class MemcpyPeer final : public TransferPeer {
 public:
  explicit MemcpyPeer(const PeerOptions& options) : options_(options) {}

  absl::Status Put(uint64_t first, ByteView pages) override {
    set_.resize(std::max<size_t>(set_.size(), first * options_.page_bytes + pages.size()));
    Copy(pages, MutableByteView(set_).subspan(first * options_.page_bytes));
    return absl::OkStatus();
  }

  absl::Status Get(uint64_t first, MutableByteView room) override {
    Copy(ByteView(set_).subspan(first * options_.page_bytes, room.size()), room);
    return absl::OkStatus();
  }

 private:
  void Copy(ByteView from, MutableByteView to) {
    // What is copied is looked at while a core's cache has it.
    constexpr size_t kPiece = 256 << 10;
    for (size_t at = 0; at < from.size(); at += kPiece) {
      const size_t bytes = std::min(kPiece, from.size() - at);
      std::memcpy(to.data() + at, from.data() + at, bytes);
      if (options_.checksum) crc_ ^= Crc32c(to.subspan(at, bytes));
    }
  }

  const PeerOptions options_;
  std::vector<std::byte> set_;
  uint32_t crc_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectRawSocket(const PeerOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(PlainSocket socket, PlainSocket::Connect(options.endpoint));
  return std::make_unique<RawSocketPeer>(std::move(socket), options.page_bytes);
}

std::unique_ptr<TransferPeer> MakeMemcpyPeer(const PeerOptions& options) {
  return std::make_unique<MemcpyPeer>(options);
}

absl::Status ServeRawSocket(const std::string& endpoint, uint64_t set_bytes) {
  std::vector<std::byte> set(set_bytes);
  OSCARKV_ASSIGN_OR_RETURN(const PlainSocket listener, PlainSocket::Listen(endpoint));
  std::printf("listening on %s\n", listener.Address(endpoint).c_str());
  std::fflush(stdout);
  while (true) {
    OSCARKV_ASSIGN_OR_RETURN(PlainSocket client, listener.Accept());
    std::thread([client = std::move(client), &set] { Answer(client, set).IgnoreError(); }).detach();
  }
}

}  // namespace oscarkv::bench
