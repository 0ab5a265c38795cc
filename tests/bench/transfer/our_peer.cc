// Our store through the client library: pages as they are stored, verified as they come, no codec.
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "client/cpp/client.h"
#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

// A page of 64 KiB for each layer.
constexpr Geometry kLayer = {
    .layers = 1, .kv_heads = 8, .k_head_dim = 128, .v_head_dim = 128, .page_tokens = 16};
constexpr uint32_t kLayerBytes = 64 << 10;
constexpr uint32_t kBlockBytes = kLayerBytes / 8;

std::string KeyOf(uint64_t page) {
  std::string key(32, 'k');
  StoreLe(reinterpret_cast<std::byte*>(key.data()), page);
  return key;
}

std::vector<std::string> KeysFrom(uint64_t first, uint64_t count) {
  std::vector<std::string> keys(count);
  for (uint64_t i = 0; i < count; ++i) keys[i] = KeyOf(first + i);
  return keys;
}

// Pages lie in memory as they are pushed.
class StoredSource final : public client::PageSource {
 public:
  StoredSource(ByteView pages, uint32_t page_bytes) : pages_(pages), page_bytes_(page_bytes) {}

  uint64_t pages() const override { return pages_.size() / page_bytes_; }
  absl::StatusOr<std::span<const client::EncodedPage>> Encode(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport*) override {
    const uint32_t blocks = page_bytes_ / kBlockBytes;
    crcs_.resize(encodings.size() * blocks);
    encoded_.clear();
    for (size_t i = 0; i < encodings.size(); ++i) {
      const ByteView page = pages_.subspan((first + i) * page_bytes_, page_bytes_);
      for (uint32_t block = 0; block < blocks; ++block)
        crcs_[i * blocks + block] = Crc32c(page.subspan(block * kBlockBytes, kBlockBytes));
      // The set outlives every call.
      const std::shared_ptr<const void> holder(std::shared_ptr<void>(), page.data());
      encoded_.push_back(
          {encodings[i], page, std::span(crcs_).subspan(i * blocks, blocks), holder});
    }
    return std::span<const client::EncodedPage>(encoded_);
  }

 private:
  const ByteView pages_;
  const uint32_t page_bytes_;
  std::vector<uint32_t> crcs_;
  std::vector<client::EncodedPage> encoded_;
};

// Pages stay in memory as they come.
class StoredSink final : public client::PageSink {
 public:
  StoredSink(MutableByteView room, uint32_t page_bytes, bool checksum)
      : room_(room), page_bytes_(page_bytes), checksum_(checksum) {}

  uint64_t pages() const override { return room_.size() / page_bytes_; }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override { return {layers}; }
  absl::Status Begin(BlockRange, BlockRange) override { return absl::OkStatus(); }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding, BlockRange,
                                       uint64_t bytes) override {
    page_ = room_.subspan(size_t{page} * page_bytes_, bytes);
    found_.clear();
    return page_;
  }
  void Filled(uint64_t bytes) override {
    if (!checksum_) return;
    for (size_t at = found_.size() * kBlockBytes; at + kBlockBytes <= bytes; at += kBlockBytes)
      found_.push_back(Crc32c(page_.subspan(at, kBlockBytes)));
  }
  absl::Status Take(std::span<const uint32_t> block_crc32c) override {
    Filled(page_.size());
    for (size_t block = 0; block < found_.size(); ++block) {
      if (found_[block] != block_crc32c[block])
        return absl::DataLossError(absl::StrCat("block ", block));
    }
    return absl::OkStatus();
  }
  absl::Status EndLayers(BlockRange, uint32_t) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    return std::vector<absl::Status>();
  }
  void Abandon(const absl::Status&) override {}

 private:
  const MutableByteView room_;
  const uint32_t page_bytes_;
  const bool checksum_;
  MutableByteView page_;
  std::vector<uint32_t> found_;  // the checksums of its blocks, as they came
};

class OurPeer final : public LookupPeer {
 public:
  OurPeer(std::unique_ptr<client::Client> client, std::unique_ptr<client::Namespace> space,
          const PeerOptions& options)
      : client_(std::move(client)), space_(std::move(space)), options_(options) {}

  absl::Status Put(uint64_t first, ByteView pages) override {
    StoredSource source(pages, options_.page_bytes);
    const std::vector<std::string> keys = KeysFrom(first, source.pages());
    OSCARKV_ASSIGN_OR_RETURN(const client::PushReport report,
                             space_->PushFrom(source, {.keys = keys, .parent = ""}));
    OSCARKV_RETURN_IF_ERROR(report.store);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (report.statuses[i] != ItemStatus::kOk)
        return absl::InternalError(absl::StrCat("page ", first + i, ": ",
                                                std::string(ItemStatusName(report.statuses[i])),
                                                " ", report.messages[i]));
    }
    return absl::OkStatus();
  }

  absl::Status Get(uint64_t first, MutableByteView room) override {
    StoredSink sink(room, options_.page_bytes, options_.checksum);
    const std::vector<std::string> keys = KeysFrom(first, sink.pages());
    OSCARKV_ASSIGN_OR_RETURN(const client::FetchReport report,
                             space_->FetchTo(sink, {.keys = keys}));
    OSCARKV_RETURN_IF_ERROR(report.store);
    if (report.pages == keys.size()) return absl::OkStatus();
    return absl::NotFoundError(
        absl::StrCat("page ", first + report.pages, ": ",
                     std::string(ItemStatusName(report.statuses[report.pages]))));
  }

  absl::Status LookUp(uint32_t count) override {
    if (looked_up_.size() != count) looked_up_ = KeysFrom(0, count);
    OSCARKV_ASSIGN_OR_RETURN(const client::Hit hit, space_->Lookup(looked_up_));
    OSCARKV_RETURN_IF_ERROR(hit.store);
    if (hit.pages == count) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(hit.pages, " of ", count, " pages"));
  }

  absl::Status Remove(uint64_t first, uint64_t count) override {
    return space_->Delete(KeysFrom(first, count)).status();
  }

 private:
  const std::unique_ptr<client::Client> client_;
  const std::unique_ptr<client::Namespace> space_;
  const PeerOptions options_;
  std::vector<std::string> looked_up_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectOurs(const PeerOptions& options) {
  return ConnectForLookups(options);
}

absl::StatusOr<std::unique_ptr<LookupPeer>> ConnectForLookups(const PeerOptions& options) {
  if (options.page_bytes == 0 || options.page_bytes % kLayerBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("pages of a multiple of ", kLayerBytes, " bytes, found ", options.page_bytes));
  }
  NamespaceSpec spec;
  spec.tenant = "oscarkv-bench";
  spec.model = "opaque";
  spec.geometry = kLayer;
  spec.geometry.layers = options.page_bytes / kLayerBytes;
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = 0;
  OSCARKV_ASSIGN_OR_RETURN(auto client, client::Client::Create({.endpoint = options.endpoint,
                                                                .fetch_paths = {options.path},
                                                                .push_paths = {options.path}}));
  OSCARKV_ASSIGN_OR_RETURN(auto space, client->OpenNamespace(spec, ""));
  return std::make_unique<OurPeer>(std::move(client), std::move(space), options);
}

}  // namespace oscarkv::bench
