// Redis: one MGET a batch, its bulk strings received where they are wanted; SETs in a pipeline. By
// hand, so that the client costs less than any library's.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/plain_socket.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

class RedisPeer final : public TransferPeer {
 public:
  RedisPeer(PlainSocket socket, uint32_t page_bytes)
      : socket_(std::move(socket)), page_bytes_(page_bytes), buffer_(16 << 10) {}

  absl::Status Put(uint64_t first, ByteView pages) override {
    const uint64_t count = pages.size() / page_bytes_;
    for (uint64_t i = 0; i < count; ++i) {
      const std::string key = KeyOf(first + i);
      OSCARKV_RETURN_IF_ERROR(socket_.Send(absl::StrCat("*3\r\n$3\r\nSET\r\n$", key.size(), "\r\n",
                                                        key, "\r\n$", page_bytes_, "\r\n")));
      OSCARKV_RETURN_IF_ERROR(socket_.Send(pages.subspan(i * page_bytes_, page_bytes_)));
      OSCARKV_RETURN_IF_ERROR(socket_.Send("\r\n"));
    }
    for (uint64_t i = 0; i < count; ++i) {
      OSCARKV_ASSIGN_OR_RETURN(const std::string line, ReadLine());
      if (line != "+OK") return absl::InternalError(line);
    }
    return absl::OkStatus();
  }

  absl::Status Get(uint64_t first, MutableByteView room) override {
    const uint64_t count = room.size() / page_bytes_;
    std::string request = absl::StrCat("*", count + 1, "\r\n$4\r\nMGET\r\n");
    for (uint64_t i = 0; i < count; ++i) {
      const std::string key = KeyOf(first + i);
      absl::StrAppend(&request, "$", key.size(), "\r\n", key, "\r\n");
    }
    OSCARKV_RETURN_IF_ERROR(socket_.Send(request));
    OSCARKV_RETURN_IF_ERROR(ReadNumber('*').status());
    for (uint64_t i = 0; i < count; ++i) {
      OSCARKV_ASSIGN_OR_RETURN(const int64_t bytes, ReadNumber('$'));
      if (bytes != page_bytes_)
        return absl::NotFoundError(absl::StrCat("page ", first + i, " has ", bytes, " bytes"));
      OSCARKV_RETURN_IF_ERROR(ReadBytes(room.subspan(i * page_bytes_, page_bytes_)));
      OSCARKV_ASSIGN_OR_RETURN(const std::string end, ReadLine());
      if (!end.empty()) return absl::InternalError("a bulk string does not end");
    }
    return absl::OkStatus();
  }

 private:
  static std::string KeyOf(uint64_t page) { return absl::StrCat("page:", page); }

  absl::Status Fill() {
    begin_ = 0;
    OSCARKV_ASSIGN_OR_RETURN(end_, socket_.ReceiveSome(buffer_));
    return absl::OkStatus();
  }

  // A line without its end.
  absl::StatusOr<std::string> ReadLine() {
    std::string line;
    while (true) {
      if (begin_ == end_) OSCARKV_RETURN_IF_ERROR(Fill());
      const char next = static_cast<char>(buffer_[begin_++]);
      if (next == '\n') return line.substr(0, line.size() - 1);
      line.push_back(next);
    }
  }

  absl::StatusOr<int64_t> ReadNumber(char type) {
    OSCARKV_ASSIGN_OR_RETURN(const std::string line, ReadLine());
    int64_t number = 0;
    if (line.find(type) != 0 || !absl::SimpleAtoi(line.substr(1), &number))
      return absl::InternalError(line);
    return number;
  }

  absl::Status ReadBytes(MutableByteView room) {
    const size_t here = std::min(room.size(), end_ - begin_);
    std::memcpy(room.data(), buffer_.data() + begin_, here);
    begin_ += here;
    return socket_.Receive(room.subspan(here));
  }

  const PlainSocket socket_;
  const uint32_t page_bytes_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0;  // what of it has come and was not read
  size_t end_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectRedis(const PeerOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(PlainSocket socket, PlainSocket::Connect(options.endpoint));
  return std::make_unique<RedisPeer>(std::move(socket), options.page_bytes);
}

}  // namespace oscarkv::bench
