// Transform sets on their way in and out.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/call_scope.h"

namespace oscarkv {
namespace {

class PutTransformReactor final : public grpc::ServerReadReactor<v1::PutTransformSetRequest> {
 public:
  PutTransformReactor(RpcContext& context, grpc::CallbackServerContext* call,
                      v1::PutTransformSetReply* reply)
      : context_(context),
        scope_(context, call, Method::kPutTransformSet),
        call_(call),
        reply_(reply),
        upload_(context.transforms()) {
    if (const absl::Status status = scope_.Admit(); !status.ok()) {
      End(status);
      return;
    }
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      if (call_->IsCancelled()) return End(absl::CancelledError("the client broke off"));
      // Checking the matrices takes longer than a reaction may.
      return context_.RunAsync([this] { End(Store()); });
    }
    const absl::Status status = message_.has_header() ? OnHeader() : OnData();
    if (!status.ok()) return End(status);
    StartRead(&message_);
  }

  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) { Finish(scope_.End(status)); }

  absl::Status OnHeader() {
    if (!hash_.empty())
      return absl::InvalidArgumentError("a transform set has one header, and a second one came");
    if (message_.header().hash().size() != kSha256Bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the hash must be ", kSha256Bytes, " bytes, found ", message_.header().hash().size()));
    }
    OSCARKV_RETURN_IF_ERROR(context_.transforms().CheckRoom(message_.header().bytes()));
    hash_ = message_.header().hash();
    bytes_ = message_.header().bytes();
    return absl::OkStatus();
  }

  // Memory grows with what has come, not with what was announced, and is counted.
  absl::Status OnData() {
    if (hash_.empty())
      return absl::InvalidArgumentError("a transform set starts with a header, and data came");
    if (message_.data().size() > bytes_ - upload_.file().size())
      return WrongSize(message_.data().size());
    return upload_.Append(message_.data());
  }

  absl::Status Store() {
    if (hash_.empty())
      return absl::InvalidArgumentError("a transform set starts with a header, and none came");
    if (upload_.file().size() != bytes_) return WrongSize(0);
    OSCARKV_ASSIGN_OR_RETURN(const bool existed, context_.transforms().Add(hash_, upload_));
    // What is known now is known after a restart, where there is a disk.
    if (const auto registered = context_.transforms().Find(hash_); registered != nullptr)
      context_.saved().SaveTransformSet(hash_, registered->file);
    reply_->set_existed(existed);
    for (const Namespace* space : context_.store().Namespaces())
      if (space->spec().codec.transform_hash == hash_) context_.OfferCodec(*space);
    return absl::OkStatus();
  }

  absl::Status WrongSize(uint64_t more) const {
    return absl::InvalidArgumentError(absl::StrCat("the header announced ", bytes_, " bytes, ",
                                                   upload_.file().size() + more, " came"));
  }

  RpcContext& context_;
  CallScope scope_;
  grpc::CallbackServerContext* call_;
  v1::PutTransformSetReply* reply_;
  v1::PutTransformSetRequest message_;
  std::string hash_;
  uint64_t bytes_ = 0;
  TransformUpload upload_;
};

class GetTransformReactor final : public grpc::ServerWriteReactor<v1::GetTransformSetReply> {
 public:
  GetTransformReactor(RpcContext& context, grpc::CallbackServerContext* call,
                      const std::string& hash)
      : scope_(context, call, Method::kGetTransformSet),
        chunk_bytes_(context.options().max_chunk_bytes) {
    if (const absl::Status status = scope_.Admit(); !status.ok()) {
      End(status);
      return;
    }
    set_ = context.transforms().Find(hash);
    if (set_ == nullptr) {
      End(absl::NotFoundError(absl::StrCat("no transform set ", absl::BytesToHexString(hash))));
      return;
    }
    reply_.mutable_header()->set_hash(hash);
    reply_.mutable_header()->set_bytes(set_->file.size());
    StartWrite(&reply_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the client broke off"));
    if (sent_ == set_->file.size()) return End(absl::OkStatus());
    reply_.set_data(set_->file.substr(sent_, chunk_bytes_));
    sent_ += reply_.data().size();
    StartWrite(&reply_);
  }

  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) { Finish(scope_.End(status)); }

  CallScope scope_;
  const size_t chunk_bytes_;
  std::shared_ptr<const RegisteredTransforms> set_;
  v1::GetTransformSetReply reply_;
  size_t sent_ = 0;
};

}  // namespace

grpc::ServerReadReactor<v1::PutTransformSetRequest>* CacheService::PutTransformSet(
    grpc::CallbackServerContext* call, v1::PutTransformSetReply* reply) {
  return new PutTransformReactor(context_, call, reply);
}

grpc::ServerWriteReactor<v1::GetTransformSetReply>* CacheService::GetTransformSet(
    grpc::CallbackServerContext* call, const v1::GetTransformSetRequest* request) {
  return new GetTransformReactor(context_, call, request->hash());
}

}  // namespace oscarkv
