#include "client/cpp/wire.h"

namespace oscarkv::client {
namespace {

constexpr int kMessageBytesMax = 64 << 20;

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint, Traffic traffic) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kReceivedAheadBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, traffic == Traffic::kPages ? 1 : 0);
  // A server that comes back is found within a second, not after gRPC's two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  // Or channels to one server would share a connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
}

v1::RequestHints ToProto(const RequestHints& hints) {
  v1::RequestHints out;
  out.set_reuse(static_cast<v1::Reuse>(hints.reuse));
  out.set_priority(hints.priority);
  out.set_residency(static_cast<v1::Residency>(hints.residency));
  out.set_output_tokens(hints.output_tokens);
  out.set_request_id(hints.request_id);
  return out;
}

}  // namespace oscarkv::client
