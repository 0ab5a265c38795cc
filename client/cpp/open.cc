// Opening a namespace on a server, again when the server restarted, and uploading its transform
// set.
#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/bulk_call.h"
#include "client/cpp/namespace_impl.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "proto/convert/data_frames.h"

namespace oscarkv::client {
namespace {

constexpr uint32_t kChunkBytesMin = 4096;
constexpr uint32_t kChunkBytesMax = 16u << 20;

absl::Status CheckPageBytes(const char* form, uint64_t mine, uint64_t theirs) {
  if (mine == theirs) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("client and server disagree about the ", form,
                                                    " page: ", mine, " and ", theirs, " bytes"));
}

// A server that understands the spec otherwise would serve pages that mean something else.
absl::Status CheckReply(const PageCodec& codec, const std::string& fingerprint,
                        const v1::OpenNamespaceReply& reply) {
  if (reply.fingerprint() != fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat(
        "client and server disagree about the fingerprint: ", absl::BytesToHexString(fingerprint),
        " and ", absl::BytesToHexString(reply.fingerprint())));
  }
  OSCARKV_RETURN_IF_ERROR(
      CheckPageBytes("WIDE", codec.layout(Encoding::kWide).page_bytes(), reply.wide_page_bytes()));
  if (!codec.can_pack()) return absl::OkStatus();
  return CheckPageBytes("PACKED", codec.layout(Encoding::kPacked).page_bytes(),
                        reply.packed_page_bytes());
}

}  // namespace

absl::Status UploadTransformSet(Connection& connection, CallGroup& group, const std::string& file,
                                uint32_t chunk_bytes) {
  const std::string hash = Sha256Of(AsBytes(file));
  const absl::Time deadline = absl::Now() + connection.options().transform_timeout;
  // As pages: it is large, and may not be in the way of other calls.
  const auto attempt = [&](const std::shared_ptr<grpc::Channel>& channel) {
    BulkCall call(channel, method::kPutTransformSet, group, deadline);
    v1::PutTransformSetRequest request;
    request.mutable_header()->set_hash(hash);
    request.mutable_header()->set_bytes(file.size());
    bool going = call.Write(FrameMessage(request));
    for (size_t offset = 0; going && offset < file.size(); offset += chunk_bytes) {
      request.set_data(file.substr(offset, chunk_bytes));
      const bool last = file.size() - offset <= chunk_bytes;
      going = last ? call.WriteLast(FrameMessage(request)) : call.Write(FrameMessage(request));
    }
    grpc::ByteBuffer reply;
    call.Read(&reply);  // it says nothing that matters here
    return call.Finish();
  };
  return connection.Transfer(group, deadline, attempt);
}

Namespace::Impl::~Impl() {
  group_.Cancel();
  std::thread upload;
  {
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Impl::Idle));
    upload.swap(upload_);
  }
  if (upload.joinable()) upload.join();
}

absl::Status Namespace::Impl::Open(bool create, absl::Time deadline) {
  v1::OpenNamespaceRequest request;
  ToProto(spec_, request.mutable_spec());
  request.set_create(create);
  request.set_expected_fingerprint(fingerprint_);
  if (settings_.store_wide)
    request.set_store_wide(static_cast<v1::StoreWide>(*settings_.store_wide));
  request.set_page_ttl_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(settings_.page_ttl)));
  v1::OpenNamespaceReply reply;
  OSCARKV_RETURN_IF_ERROR(Call(deadline, method::kOpenNamespace, request, &reply));
  OSCARKV_RETURN_IF_ERROR(CheckReply(*codec_, fingerprint_, reply));
  const absl::MutexLock lock(&mutex_);
  open_ = true;
  server_epoch_ = reply.server_epoch();
  max_items_ = std::max<uint32_t>(reply.limits().max_items(), 1);
  max_chunk_bytes_ = std::clamp(reply.limits().max_chunk_bytes(), kChunkBytesMin, kChunkBytesMax);
  if (transforms_ != Transforms::kUploading) {
    const bool there = transform_file_.empty() || reply.has_transform_set();
    transforms_ = there ? Transforms::kThere : Transforms::kMissing;
  }
  return absl::OkStatus();
}

absl::Status Namespace::Impl::UploadIfMissing(absl::Time deadline) {
  const uint32_t chunk_bytes = max_chunk_bytes();
  const absl::MutexLock lock(&mutex_);
  if (transforms_ == Transforms::kMissing) {
    transforms_ = Transforms::kUploading;
    if (upload_.joinable()) upload_.join();  // of an earlier upload: at its end
    upload_ = std::thread([this, chunk_bytes] {
      const absl::Status status =
          UploadTransformSet(*connection_, group_, transform_file_, chunk_bytes);
      const absl::MutexLock upload_lock(&mutex_);
      upload_status_ = status;
      transforms_ = status.ok() ? Transforms::kThere : Transforms::kMissing;
    });
  }
  if (transforms_ == Transforms::kThere) return absl::OkStatus();
  if (!mutex_.AwaitWithDeadline(absl::Condition(this, &Impl::UploadEnded), deadline))
    return absl::DeadlineExceededError("the transform set is still being uploaded");
  return upload_status_;
}

absl::Status Namespace::Impl::Prepare(Needs needs, absl::Time deadline) {
  bool open = false;
  {
    const absl::MutexLock lock(&mutex_);
    open = open_;
  }
  if (!open) OSCARKV_RETURN_IF_ERROR(Open(/*create=*/true, deadline));
  return needs == Needs::kTransforms ? UploadIfMissing(deadline) : absl::OkStatus();
}

absl::Status Namespace::Impl::WithOpen(Needs needs, absl::Time deadline,
                                       absl::FunctionRef<absl::Status()> call) {
  OSCARKV_RETURN_IF_ERROR(Prepare(needs, deadline));
  absl::Status status = call();
  // ABORTED: another epoch. FAILED_PRECONDITION: the fingerprint is not known (any more).
  if (!absl::IsAborted(status) && !absl::IsFailedPrecondition(status)) return status;
  connection_->CountReopen();
  {
    const absl::MutexLock lock(&mutex_);
    open_ = false;
  }
  OSCARKV_RETURN_IF_ERROR(Prepare(needs, deadline));
  return call();
}

absl::Status Namespace::Impl::CheckCallable() const {
  if (group_.cancelled()) return absl::CancelledError("the namespace is being destroyed");
  return connection_->CheckCallable();
}

absl::AnyInvocable<void() &&> Namespace::Impl::Counted(absl::AnyInvocable<void() &&> task) {
  {
    const absl::MutexLock lock(&mutex_);
    ++tasks_;
  }
  return [this, task = std::move(task)]() mutable {
    std::move(task)();
    task = nullptr;  // what it holds may be the caller's: gone before the destructor goes on
    const absl::MutexLock lock(&mutex_);
    --tasks_;
  };
}

void Namespace::Impl::RunAsync(absl::AnyInvocable<void() &&> task) {
  connection_->RunAsync(Counted(std::move(task)));
}

bool Namespace::Impl::RunPush(uint64_t pages, uint64_t bytes, absl::AnyInvocable<void() &&> task) {
  if (connection_->RunPush(pages, bytes, Counted(std::move(task)))) return true;
  const absl::MutexLock lock(&mutex_);
  --tasks_;
  return false;
}

}  // namespace oscarkv::client
