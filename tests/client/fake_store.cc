#include "tests/client/fake_store.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "kernels/base/sha256.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/transform_file.h"
#include "proto/convert/convert.h"
#include "proto/wire/page_key.h"

namespace oscarkv::testing {
namespace {

constexpr int64_t kSlots = 64;
constexpr size_t kChunkBytes = 1000;
constexpr Geometry kGeometry = {.layers = 2,
                                .kv_heads = 2,
                                .k_head_dim = 16,
                                .v_head_dim = 16,
                                .page_tokens = 4,
                                .dtype = DType::kBf16};

NamespaceSpec SpecOf(const std::string& transform_file) {
  NamespaceSpec spec;
  spec.model = "fake";
  spec.geometry = kGeometry;
  if (!transform_file.empty()) spec.codec.transform_hash = Sha256Of(AsBytes(transform_file));
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = 4;
  return spec;
}

}  // namespace

std::string SmallTransformFile() {
  return SerializeTransformFile(MakeHadamardTransformSet(kGeometry, 0.96f, 0.92f).value(), "");
}

FakeStore::FakeStore() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

FakeStore::~FakeStore() { server_->Shutdown(std::chrono::system_clock::now()); }

std::string FakeStore::endpoint() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeStore::SetEpoch(uint64_t epoch) {
  const absl::MutexLock lock(&mutex_);
  epoch_ = epoch;
  pages_.clear();
  transform_file_.clear();
}

int FakeStore::calls(const std::string& method) const {
  const absl::MutexLock lock(&mutex_);
  const auto found = calls_.find(method);
  return found == calls_.end() ? 0 : found->second;
}

v1::LookupRequest FakeStore::last_lookup() const {
  const absl::MutexLock lock(&mutex_);
  return last_lookup_;
}

std::vector<uint64_t> FakeStore::released_leases() const {
  const absl::MutexLock lock(&mutex_);
  return released_leases_;
}

std::string FakeStore::transform_file() const {
  const absl::MutexLock lock(&mutex_);
  return transform_file_;
}

void FakeStore::AwaitCalls(const std::string& method, int count) const {
  const absl::MutexLock lock(&mutex_);
  const auto reached = [&] {
    mutex_.AssertReaderHeld();
    const auto found = calls_.find(method);
    return found != calls_.end() && found->second >= count;
  };
  ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), absl::Seconds(60)));
}

void FakeStore::AwaitTransforms() const {
  const absl::MutexLock lock(&mutex_);
  const auto there = [&] {
    mutex_.AssertReaderHeld();
    return !transform_file_.empty();
  };
  ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(60)));
}

grpc::Status FakeStore::Begin(const std::string& method) {
  {
    const absl::MutexLock lock(&mutex_);
    ++calls_[method];
  }
  enter(method);
  return fail(method);
}

grpc::Status FakeStore::CheckScope(const v1::Scope& scope) const {
  const absl::MutexLock lock(&mutex_);
  if (scope.server_epoch() == 0 || scope.server_epoch() == epoch_) return grpc::Status::OK;
  return {grpc::StatusCode::ABORTED, "another epoch"};
}

grpc::Status FakeStore::OpenNamespace(grpc::ServerContext*, const v1::OpenNamespaceRequest* request,
                                      v1::OpenNamespaceReply* reply) {
  if (grpc::Status status = Begin("OpenNamespace"); !status.ok()) return status;
  on_open(*request);
  const absl::StatusOr<NamespaceSpec> spec = FromProto(request->spec());
  if (!spec.ok()) return ToGrpcStatus(spec.status());
  reply->set_fingerprint(Fingerprint(*spec));
  reply->mutable_limits()->set_max_items(1024);
  reply->mutable_limits()->set_max_chunk_bytes(1 << 20);
  reply->set_wide_page_bytes(
      PageLayout::Create(spec->geometry, spec->codec, Encoding::kWide)->page_bytes());
  reply->set_packed_page_bytes(
      PageLayout::Create(spec->geometry, spec->codec, Encoding::kPacked)->page_bytes());
  {
    const absl::MutexLock lock(&mutex_);
    reply->set_server_epoch(epoch_);
    reply->set_has_transform_set(!transform_file_.empty());
  }
  edit_open(reply);
  return grpc::Status::OK;
}

grpc::Status FakeStore::PutTransformSet(grpc::ServerContext*,
                                        grpc::ServerReader<v1::PutTransformSetRequest>* reader,
                                        v1::PutTransformSetReply*) {
  if (grpc::Status status = Begin("PutTransformSet"); !status.ok()) return status;
  std::string file;
  for (v1::PutTransformSetRequest request; reader->Read(&request);) file += request.data();
  const absl::MutexLock lock(&mutex_);
  transform_file_ = file;
  return grpc::Status::OK;
}

grpc::Status FakeStore::Session(
    grpc::ServerContext*, grpc::ServerReaderWriter<v1::SessionReply, v1::SessionRequest>* stream) {
  if (grpc::Status status = Begin("Session"); !status.ok()) return status;
  v1::SessionRequest request;
  if (!stream->Read(&request)) return grpc::Status::OK;
  v1::SessionReply reply;
  reply.set_session_id(77);
  edit_session(&reply);
  stream->Write(reply);
  while (stream->Read(&request)) continue;
  return grpc::Status::OK;
}

grpc::Status FakeStore::Lookup(grpc::ServerContext*, const v1::LookupRequest* request,
                               v1::LookupReply* reply) {
  if (grpc::Status status = Begin("Lookup"); !status.ok()) return status;
  if (grpc::Status status = CheckScope(request->scope()); !status.ok()) return status;
  {
    const absl::MutexLock lock(&mutex_);
    last_lookup_ = *request;
    for (const std::string& key : request->keys()) {
      const auto found = pages_.find(key);
      if (found == pages_.end()) break;
      v1::PageInfo* info = reply->add_pages();
      info->set_status(v1::OK);
      info->set_encoding(found->second.item.encoding());
    }
  }
  reply->set_prefix_pages(static_cast<uint32_t>(reply->pages_size()));
  if (request->lease()) reply->set_lease_id(42);
  edit_lookup(reply);
  return grpc::Status::OK;
}

grpc::Status FakeStore::ReleaseLease(grpc::ServerContext*, const v1::ReleaseLeaseRequest* request,
                                     v1::ReleaseLeaseReply*) {
  if (grpc::Status status = Begin("ReleaseLease"); !status.ok()) return status;
  const absl::MutexLock lock(&mutex_);
  released_leases_.push_back(request->lease_id());
  return grpc::Status::OK;
}

grpc::Status FakeStore::Put(grpc::ServerContext*, grpc::ServerReader<v1::PutRequest>* reader,
                            v1::PutReply* reply) {
  if (grpc::Status status = Begin("Put"); !status.ok()) return status;
  v1::PutRequest request;
  if (!reader->Read(&request)) return grpc::Status::OK;
  const v1::PutHeader header = request.header();
  if (grpc::Status status = CheckScope(header.scope()); !status.ok()) return status;
  std::vector<std::string> bytes(static_cast<size_t>(header.items_size()));
  while (reader->Read(&request)) bytes.at(request.chunk().item()) += request.chunk().data();
  {
    const absl::MutexLock lock(&mutex_);
    for (int i = 0; i < header.items_size(); ++i) {
      pages_[header.items(i).key()] = {header.items(i), bytes[static_cast<size_t>(i)]};
      reply->add_results()->set_status(v1::OK);
    }
  }
  edit_put(reply);
  return grpc::Status::OK;
}

std::vector<v1::GetReply> FakeStore::HonestGet(const v1::GetRequest& request) const {
  const absl::MutexLock lock(&mutex_);
  std::vector<v1::GetReply> replies;
  for (uint32_t i = 0; i < static_cast<uint32_t>(request.keys_size()); ++i) {
    const auto found = pages_.find(request.keys(static_cast<int>(i)));
    v1::GetItem* item = replies.emplace_back().mutable_item();
    item->set_item(i);
    item->mutable_result()->set_status(found == pages_.end() ? v1::MISS : v1::OK);
    if (found == pages_.end()) break;
    item->set_encoding(found->second.item.encoding());
    // All heads of the layers asked for; the fixture's blocks are all of one size.
    const auto& crcs = found->second.item.block_crc32c();
    const auto block_bytes = found->second.bytes.size() / static_cast<size_t>(crcs.size());
    const uint32_t first = request.first_layer() * request.heads();
    const uint32_t blocks = request.layers() * request.heads();
    item->mutable_block_crc32c()->Add(crcs.begin() + first, crcs.begin() + first + blocks);
    const std::string bytes = found->second.bytes.substr(first * block_bytes, blocks * block_bytes);
    item->set_bytes(bytes.size());
    for (size_t offset = 0; offset < bytes.size(); offset += kChunkBytes) {
      v1::Chunk* chunk = replies.emplace_back().mutable_chunk();
      chunk->set_item(i);
      chunk->set_offset(offset);
      chunk->set_data(bytes.substr(offset, kChunkBytes));
    }
  }
  replies.emplace_back().mutable_end();
  return replies;
}

grpc::Status FakeStore::Get(grpc::ServerContext*, const v1::GetRequest* request,
                            grpc::ServerWriter<v1::GetReply>* writer) {
  if (grpc::Status status = Begin("Get"); !status.ok()) return status;
  if (grpc::Status status = CheckScope(request->scope()); !status.ok()) return status;
  std::vector<v1::GetReply> replies = HonestGet(*request);
  edit_get(&replies);
  for (const v1::GetReply& reply : replies) {
    if (!writer->Write(reply)) break;
  }
  return end_get();
}

grpc::Status FakeStore::Delete(grpc::ServerContext*, const v1::KeysRequest* request,
                               v1::KeysReply* reply) {
  if (grpc::Status status = Begin("Delete"); !status.ok()) return status;
  if (grpc::Status status = CheckScope(request->scope()); !status.ok()) return status;
  for (int i = 0; i < request->keys_size(); ++i) reply->add_results()->set_status(v1::OK);
  edit_keys(reply);
  return grpc::Status::OK;
}

grpc::Status FakeStore::Persist(grpc::ServerContext*, const v1::KeysRequest* request,
                                v1::KeysReply* reply) {
  if (grpc::Status status = Begin("Persist"); !status.ok()) return status;
  if (grpc::Status status = CheckScope(request->scope()); !status.ok()) return status;
  for (int i = 0; i < request->keys_size(); ++i) reply->add_results()->set_status(v1::OK);
  edit_keys(reply);
  return grpc::Status::OK;
}

grpc::Status FakeStore::List(grpc::ServerContext*, const v1::ListRequest* request,
                             v1::ListReply* reply) {
  if (grpc::Status status = Begin("List"); !status.ok()) return status;
  if (grpc::Status status = CheckScope(request->scope()); !status.ok()) return status;
  edit_list(reply);
  return grpc::Status::OK;
}

WorkerCache::WorkerCache(const Geometry& geometry) : geometry_(geometry) {
  const size_t layer = size_t{kSlots} * geometry.kv_heads * geometry.k_head_dim;
  values_.assign(2 * geometry.layers * layer, 0x40e0);  // 7
  for (size_t i = 0; i < 2 * geometry.layers; ++i)
    layers_.push_back(reinterpret_cast<std::byte*>(values_.data() + i * layer));
}

EngineView WorkerCache::view() {
  const auto side = [&](size_t first) {
    const int64_t head = geometry_.k_head_dim * 2;
    const int64_t token = head * geometry_.kv_heads;
    return EngineSide{.layer_base = std::span(layers_).subspan(first, geometry_.layers),
                      .block_stride = token,
                      .token_stride = token,
                      .head_stride = head,
                      .dtype = DType::kBf16};
  };
  return {.k = side(0), .v = side(geometry_.layers), .block_tokens = 1, .slots = kSlots};
}

bool WorkerCache::SameRows(const WorkerCache& other, int64_t first, int64_t end) const {
  const auto token = static_cast<int64_t>(geometry_.kv_heads) * geometry_.k_head_dim;
  for (int64_t layer = 0; layer < 2 * geometry_.layers; ++layer) {
    const auto begin = (layer * kSlots + first) * token;
    if (!std::equal(values_.begin() + begin, values_.begin() + begin + (end - first) * token,
                    other.values_.begin() + begin)) {
      return false;
    }
  }
  return true;
}

void WorkerCache::FillRandom(uint64_t seed) {
  std::mt19937_64 random(seed);
  // Finite: bf16 numbers between 1 and 2, of both signs.
  for (uint16_t& value : values_)
    value = static_cast<uint16_t>(0x3f80 | (random() & 0x7f) | (random() & 0x8000));
}

Fixture::Fixture(const client::ClientOptions& options, const std::string& transform_file)
    : spec(SpecOf(transform_file)),
      source(spec.geometry),
      destination(spec.geometry),
      untouched(spec.geometry) {
  source.FillRandom(1);
  slots.resize(12);
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<uint32_t> tokens(slots.size(), 5);
  keys = ChainKeys(tokens, spec.geometry.page_tokens);
  client::ClientOptions mine = options;
  mine.endpoint = store.endpoint();
  client = client::Client::Create(mine).value();
  space = client->OpenNamespace(spec, transform_file).value();
}

Fixture::~Fixture() = default;

absl::StatusOr<client::PushReport> Fixture::Push() {
  client::PushRequest request;
  request.keys = keys;
  request.slots = slots;
  return space->Push(source.view(), request);
}

absl::StatusOr<client::FetchReport> Fixture::Fetch() {
  client::FetchRequest request;
  request.keys = keys;
  request.slots = slots;
  return space->Fetch(destination.view(), request);
}

}  // namespace oscarkv::testing
