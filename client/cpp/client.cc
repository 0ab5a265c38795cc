#include "client/cpp/client.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <google/protobuf/util/json_util.h>

#include "client/cpp/bulk_call.h"
#include "client/cpp/connection.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/paths.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/transform_file.h"
#include "proto/convert/convert.h"
#include "proto/convert/data_frames.h"

namespace oscarkv::client {
namespace {

// Far beyond any model's transform set: a server that claims more is not believed.
constexpr uint64_t kTransformBytesMax = uint64_t{4} << 30;

// gRPC would take any text, and find out later that there is nothing behind it: then a slip of the
// pen would look like a store that is dead.
absl::Status CheckEndpoint(const std::string& endpoint) {
  if (absl::StartsWith(endpoint, "unix:") && endpoint.size() > 5) return absl::OkStatus();
  const size_t colon = endpoint.rfind(':');
  int port = 0;
  if (colon != std::string::npos && colon > 0 &&
      absl::SimpleAtoi(endpoint.substr(colon + 1), &port) && port > 0 && port < 65536) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "client: endpoint must be host:port or unix:/path, found '", absl::CEscape(endpoint), "'"));
}

constexpr int kBulkChannelsMax = 64;

absl::Status CheckOptions(const ClientOptions& options) {
  OSCARKV_RETURN_IF_ERROR(CheckEndpoint(options.endpoint));
  for (absl::Duration timeout :
       {options.control_timeout, options.lookup_timeout, options.fetch_timeout,
        options.push_timeout, options.transform_timeout, options.peer_meet_timeout}) {
    if (timeout <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError(
          absl::StrCat("client: timeouts must be positive, found ", absl::FormatDuration(timeout)));
    }
  }
  if (options.attempts < 1 || options.async_threads < 1 || options.breaker.failures < 1 ||
      options.push_batch_bytes < 1 || options.push_queue_bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "client: attempts, async_threads, breaker.failures, push_batch_bytes and push_queue_bytes "
        "must be at least 1, found ",
        options.attempts, ", ", options.async_threads, ", ", options.breaker.failures, ", ",
        options.push_batch_bytes, " and ", options.push_queue_bytes));
  }
  if (options.bulk_part_bytes < 1)
    return absl::InvalidArgumentError("client: bulk_part_bytes must be at least 1, found 0");
  if (options.bulk_channels < 0 || options.bulk_channels > kBulkChannelsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "client: bulk_channels must be 0..", kBulkChannelsMax, ", found ", options.bulk_channels));
  }
  if (options.breaker.pause <= absl::ZeroDuration() ||
      options.breaker.pause_max < options.breaker.pause) {
    return absl::InvalidArgumentError(
        absl::StrCat("client: breaker.pause must be positive and at most breaker.pause_max, found ",
                     absl::FormatDuration(options.breaker.pause), " and ",
                     absl::FormatDuration(options.breaker.pause_max)));
  }
  return absl::OkStatus();
}

absl::Status CheckSettings(const NamespaceSettings& settings) {
  const absl::Duration ttl = settings.page_ttl;
  if (ttl == absl::ZeroDuration() ||
      (ttl >= absl::Milliseconds(1) && ttl < absl::InfiniteDuration()))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("namespace: page_ttl must be zero (as it is) or at least 1 ms, and end, found ",
                   absl::FormatDuration(ttl)));
}

// The codec of a namespace, with the transform set of `file` if there is one.
absl::StatusOr<std::unique_ptr<PageCodec>> MakeCodec(CodecBackend backend,
                                                     const NamespaceSpec& spec,
                                                     const std::string& file) {
  std::shared_ptr<const TransformSet> transforms;
  if (!file.empty()) {
    const std::string hash = Sha256Of(AsBytes(file));
    if (hash != spec.codec.transform_hash) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the namespace names transform set ", absl::BytesToHexString(spec.codec.transform_hash),
          ", the file is ", absl::BytesToHexString(hash)));
    }
    OSCARKV_ASSIGN_OR_RETURN(TransformSet set, ParseTransformFile(AsBytes(file)));
    transforms = std::make_shared<const TransformSet>(std::move(set));
  } else if (!spec.codec.transform_hash.empty()) {
    return absl::InvalidArgumentError("the namespace names a transform set and none was given");
  }
  return MakePageCodec(backend, spec.geometry, spec.codec, std::move(transforms));
}

}  // namespace

Client::Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const ClientOptions& options) {
  OSCARKV_RETURN_IF_ERROR(CheckOptions(options));
  return std::unique_ptr<Client>(new Client(std::make_shared<Connection>(options)));
}

absl::StatusOr<std::unique_ptr<Namespace>> Client::OpenNamespace(
    const NamespaceSpec& spec, std::string transform_file, bool create,
    const NamespaceSettings& settings) {
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(spec));
  OSCARKV_RETURN_IF_ERROR(CheckSettings(settings));
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<PageCodec> codec,
                           MakeCodec(connection_->options().codec, spec, transform_file));
  auto impl = std::make_unique<Namespace::Impl>(connection_, spec, std::move(transform_file),
                                                std::move(codec), settings);
  absl::Status status = impl->Open(create, absl::Now() + connection_->options().control_timeout);
  if (status.ok())
    status = impl->UploadIfMissing(absl::Now() + connection_->options().transform_timeout);
  // A refusal is the caller's to see; a server that is not there will be asked again by the calls
  // that follow.
  if (absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status)) return status;
  return std::unique_ptr<Namespace>(new Namespace(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Namespace>> Client::InspectNamespace(const NamespaceSpec& spec) {
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(spec));
  OSCARKV_ASSIGN_OR_RETURN(
      std::unique_ptr<PageCodec> codec,
      MakePageCodec(connection_->options().codec, spec.geometry, spec.codec, nullptr));
  auto impl = std::make_unique<Namespace::Impl>(connection_, spec, std::string(), std::move(codec),
                                                NamespaceSettings());
  OSCARKV_RETURN_IF_ERROR(
      impl->Open(/*create=*/false, absl::Now() + connection_->options().control_timeout));
  return std::unique_ptr<Namespace>(new Namespace(std::move(impl)));
}

absl::Status Client::PutTransformSet(const std::string& transform_file) {
  OSCARKV_RETURN_IF_ERROR(ParseTransformFile(AsBytes(transform_file)).status());
  CallGroup alone;
  return UploadTransformSet(*connection_, alone, transform_file, 1u << 20);
}

absl::StatusOr<bool> Client::DeleteTransformSet(const std::string& hash) {
  v1::DeleteTransformSetRequest request;
  request.set_hash(hash);
  v1::DeleteTransformSetReply reply;
  OSCARKV_RETURN_IF_ERROR(connection_->Call(connection_->options().control_timeout,
                                            method::kDeleteTransformSet, request, &reply));
  return reply.existed();
}

absl::StatusOr<std::string> Client::GetTransformSet(const std::string& hash) {
  v1::GetTransformSetRequest request;
  request.set_hash(hash);
  std::string file;
  CallGroup alone;
  const absl::Time deadline = absl::Now() + connection_->options().transform_timeout;
  const auto attempt = [&](const std::shared_ptr<grpc::Channel>& channel) {
    file.clear();
    BulkCall call(channel, method::kGetTransformSet, alone, deadline);
    grpc::ByteBuffer message;
    v1::GetTransformSetReply reply;
    bool going = call.WriteLast(FrameMessage(request));
    while (going && call.Read(&message)) {
      going =
          ParseMessage(message, &reply) && file.size() + reply.data().size() <= kTransformBytesMax;
      if (going) file += reply.data();
    }
    // What is no such file is seen below.
    return going ? call.Finish() : grpc::Status::OK;
  };
  OSCARKV_RETURN_IF_ERROR(connection_->Transfer(alone, deadline, attempt));
  if (Sha256Of(AsBytes(file)) == hash) return file;
  return absl::DataLossError(
      absl::StrCat("the transform set that came is not ", absl::BytesToHexString(hash)));
}

absl::StatusOr<std::string> Client::StatsJson() {
  v1::StatsReply reply;
  OSCARKV_RETURN_IF_ERROR(connection_->Call(connection_->options().control_timeout, method::kStats,
                                            v1::StatsRequest(), &reply));
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(reply, &json, options);
  if (!status.ok()) return absl::InternalError(status.ToString());
  return json;
}

absl::Status Client::Verify(uint64_t bytes_per_second,
                            absl::AnyInvocable<void(uint64_t, uint64_t, uint64_t)> progress) {
  v1::VerifyRequest request;
  request.set_bytes_per_second(bytes_per_second);
  CallGroup alone;
  // As long as it takes: the operator who waits sees the progress and can stop it.
  const absl::Time deadline = absl::InfiniteFuture();
  return connection_->Transfer(alone, deadline, [&](const std::shared_ptr<grpc::Channel>& channel) {
    BulkCall call(channel, method::kVerify, alone, deadline);
    grpc::ByteBuffer message;
    v1::VerifyReply reply;
    const bool going = call.WriteLast(FrameMessage(request));
    while (going && call.Read(&message)) {
      if (!ParseMessage(message, &reply))
        return ToGrpcStatus(
            absl::DataLossError("the server sent a message that is no VerifyReply"));
      progress(reply.pages_checked(), reply.pages_total(), reply.pages_corrupt());
    }
    return call.Finish();
  });
}

void Client::Close() { connection_->Close(); }

PathUse Client::path(Direction direction) const { return connection_->paths().Use(direction); }
bool Client::AwaitPushes(absl::Duration timeout) const { return connection_->AwaitPushes(timeout); }

ClientCounters Client::counters() const { return connection_->counters(); }

}  // namespace oscarkv::client
