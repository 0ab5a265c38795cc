#include "server/server.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "kernels/base/host_id.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "kernels/comm/nccl_fabric.h"
#include "proto/wire/data_path.h"
#include "proto/wire/store_wide.h"
#include "server/config/load.h"
#include "server/core/archive_writer.h"
#include "server/core/copy_mover.h"
#include "server/core/learnt_policy.h"
#include "server/core/lru_policy.h"
#include "server/core/page_store.h"
#include "server/core/re_encoder.h"
#include "server/corrupt_log.h"
#include "server/disk_archive_setup.h"
#include "server/gpu_copies.h"
#include "server/metrics/collector.h"
#include "server/metrics/exposer.h"
#include "server/rpc/admin_service.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/lookup_threads.h"
#include "server/rpc/peer_service.h"
#include "server/rpc/rpc_context.h"
#include "server/shared_memory.h"
#include "server/version.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv {
namespace {

constexpr double kHeldShareMax = 0.5;  // of the GPU tier, that readers may hold at once
constexpr absl::Duration kLeaseSweep = absl::Seconds(1);
// What health checks may ask for, apart from the services: whether the GPU tier is in use.
constexpr char kGpuTierHealth[] = "oscarkv.v1.GpuTier";
constexpr int kMessageBytesMax = 64 << 20;
// After the last call: for answers on their way, and no longer, since a stream that watches the
// health, or reflection, ends only when its client wants.
constexpr absl::Duration kLastAnswers = absl::Seconds(1);

// Calls a function every second on a thread of its own, until destroyed.
class Ticker {
 public:
  explicit Ticker(absl::AnyInvocable<void()> tick)
      : tick_(std::move(tick)), thread_([this] { Run(); }) {}
  ~Ticker() {
    {
      const absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

 private:
  void Run() {
    while (true) {
      {
        const absl::MutexLock lock(&mutex_);
        if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kLeaseSweep)) return;
      }
      tick_();
    }
  }

  absl::AnyInvocable<void()> tick_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

std::string CodeName(size_t code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

// A size of a configuration that CheckConfig has accepted.
uint64_t Bytes(const std::string& text) { return ParseBytes(text).value_or(0); }

// Names of a configuration that CheckConfig has accepted.
std::vector<DataPath> PathsOf(const google::protobuf::RepeatedPtrField<std::string>& names) {
  std::vector<DataPath> paths;
  for (const std::string& name : names)
    if (const auto path = ParseDataPath(name)) paths.push_back(*path);
  return paths;
}

std::unique_ptr<EvictionPolicy> MakePolicy(const std::string& name) {
  if (name == "lru") return std::make_unique<LruPolicy>();
  return std::make_unique<LearntPolicy>();
}

}  // namespace

class Server::Impl {
 public:
  Impl(const v1::ServerConfig& config, const ServerDevices& devices)
      : config_(config),
        devices_(devices),
        logger_(ParseLogLevel(config.log_level()).value_or(LogLevel::kInfo),
                config.log_format() == "json" ? LogFormat::kJson : LogFormat::kText) {}

  absl::Status Start() {
    OSCARKV_RETURN_IF_ERROR(MakeStore());
    RpcOptions options{
        .max_items = config_.limits().max_items(),
        .max_chunk_bytes = static_cast<uint32_t>(Bytes(config_.limits().max_chunk())),
        .max_inflight_bytes = Bytes(config_.limits().max_inflight()),
        .lease_max = absl::Milliseconds(config_.limits().lease_ms_max()),
        .max_transform_set_bytes = Bytes(config_.limits().max_transform_set()),
        .paths = {PathsOf(config_.paths().fetch()), PathsOf(config_.paths().push())}};
    context_ = std::make_unique<RpcContext>(options, *store_, logger_, catalog_);
    context_->Restore();
    if (holds_ != nullptr) context_->set_device_holds(holds_.get());
    if (hub_ != nullptr) context_->set_peer_hub(hub_.get());
    OSCARKV_ASSIGN_OR_RETURN(door_, OpenDoor(config_, host_, *context_));
    cache_ = std::make_unique<CacheService>(*context_);
    peer_ = std::make_unique<PeerService>(*context_, peer_options_);
    admin_ = std::make_unique<AdminService>(*context_, std::string(kVersion));
    OSCARKV_RETURN_IF_ERROR(Listen());
    if (config_.metrics_listen() != "off") {
      OSCARKV_ASSIGN_OR_RETURN(
          metrics_, MetricsExposer::Create(config_.metrics_listen(),
                                           std::make_shared<Collector>([this] { return Take(); })));
      const std::string host =
          config_.metrics_listen().substr(0, config_.metrics_listen().rfind(':'));
      metrics_address_ = absl::StrCat(host, ":", metrics_->port());
    }
    if (store_->copies() != nullptr) StartCopying();
    if (store_->archive_queue() != nullptr) StartArchiving();
    re_encoders_ = std::make_unique<ReEncodePool>(
        *store_, ReEncodePoolOptions{.max_cores = config_.ladder().max_cores()});
    ticker_ = std::make_unique<Ticker>([this] {
      store_->ExpireLeases();
      store_->ExpirePages();
      if (holds_ != nullptr) holds_->Expire();
      if (peer_->pushes() != nullptr) peer_->pushes()->Expire();
      store_->EnforceQuotas();
      corrupt_log_.LogLeftOut();
      store_->reencode_bell().Ring();  // what found no room tries again
    });
    logger_.Log(LogLevel::kInfo, "serving",
                {{"version", std::string(kVersion)},
                 {"epoch", absl::StrCat(context_->epoch())},
                 {"host_bytes", FormatBytes(Bytes(config_.host().capacity()))}});
    return absl::OkStatus();
  }

  void Shutdown(absl::Duration grace) {
    if (grpc_ == nullptr) return;
    logger_.Log(LogLevel::kInfo, "draining",
                {{"calls", absl::StrCat(context_->calls_in_flight())}});
    grpc_->GetHealthCheckService()->SetServingStatus(false);
    context_->StartDrain();
    // Until the calls in flight have ended, new ones are told that the server drains; then gRPC
    // closes the connections.
    const absl::Time deadline = absl::Now() + grace;
    context_->WaitForCalls(deadline);
    grpc_->Shutdown(absl::ToChronoTime(std::min(deadline, absl::Now() + kLastAnswers)));
    grpc_->Wait();
    lookups_->Stop();
    if (hub_ != nullptr) hub_->Stop();  // what it calls back is there until here
    door_.reset();
    copy_worker_.reset();
    re_encoders_.reset();
    if (archive_worker_ != nullptr) {
      store_->ArchiveWorthy(deadline);
      store_->archive_queue()->AwaitDrained(deadline);
    }
    archive_worker_.reset();
    grpc_.reset();
    ticker_.reset();
    metrics_.reset();
    logger_.Log(LogLevel::kInfo, "stopped");
  }

  void Reload(const absl::StatusOr<v1::ServerConfig>& config) {
    if (!config.ok()) {
      logger_.Log(LogLevel::kError, "the configuration cannot be read again: all stays as it was",
                  {{"reason", std::string(config.status().message())}});
      return;
    }
    store_->SetQuotas(QuotasOf(*config));
    logger_.Log(LogLevel::kInfo, "read the tenants of the configuration again",
                {{"tenants", absl::StrCat(config->tenants_size())}});
  }

  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& metrics_address() const { return metrics_address_; }
  RpcContext& context() { return *context_; }

 private:
  absl::Status MakeStore() {
    OSCARKV_ASSIGN_OR_RETURN(host_, OpenHostTier(config_));
    std::unique_ptr<HostTier> tier = std::move(host_.tier);
    PageStoreOptions options;
    options.namespaces_max = config_.limits().max_namespaces();
    options.tenants_max = config_.limits().max_tenants();
    options.lease_max = absl::Milliseconds(config_.limits().lease_ms_max());
    options.leased_share_max = config_.limits().max_leased_share();
    options.pinned_share_max = config_.eviction().max_pinned_share();
    options.store_wide = ParseStoreWide(config_.ladder().store_wide()).value_or(StoreWide::kTail);
    options.reencode_free_share = config_.ladder().free_share();
    options.wide_tails_share_max = config_.ladder().max_wide_tails_share();
    options.on_corrupt = [this](const CorruptPage& page) { corrupt_log_.Log(page); };
    std::unique_ptr<PageCopies> copies;
    if (WantsGpu(config_)) {
      OSCARKV_ASSIGN_OR_RETURN(
          GpuCopies opened, OpenGpuCopies(config_.gpu(), tier->arena(), devices_.memory, logger_));
      copies = std::move(opened.copies);
      if (copies->tier() != nullptr) {
        ShareCopies(copies->tier()->capacity_bytes(), opened);
        OpenHub();
      }
    }
    std::unique_ptr<PageArchive> archive;
    if (WantsDisk(config_)) {
      options.archive_admission =
          ParseArchiveAdmission(config_.disk().admit()).value_or(ArchiveAdmission::kWorth);
      OSCARKV_ASSIGN_OR_RETURN(archive, OpenDiskArchive(config_.disk(), logger_));
      catalog_ = archive->catalog();
    }
    OSCARKV_ASSIGN_OR_RETURN(
        store_, PageStore::Create(options, std::move(tier), MakePolicy(config_.eviction().policy()),
                                  clock_, std::move(copies), std::move(archive)));
    store_->SetQuotas(QuotasOf(config_));
    return absl::OkStatus();
  }

  // Processes of this host may read the copies where they are.
  void ShareCopies(uint64_t bytes, GpuCopies& opened) {
    staging_ = std::move(opened.staging);
    peer_options_ = {.memory_handle = opened.handle,
                     .memory = opened.memory,
                     .memory_bytes = bytes,
                     .staging = staging_.get(),
                     .host = HostId()};
    holds_ = std::make_unique<DeviceHolds>(
        DeviceHoldsOptions{
            .bytes_max = static_cast<uint64_t>(kHeldShareMax * static_cast<double>(bytes)),
            .hold_max = absl::Milliseconds(config_.limits().lease_ms_max())},
        clock_);
  }

  // Pages may move to and from other GPUs.
  void OpenHub() {
    peer_options_.no_peers = "gpu.nccl is off";
    if (config_.gpu().nccl() == "off") return;
    comm::NcclOptions options;
    options.device = static_cast<int>(config_.gpu().device());
    if (config_.gpu().nccl() != "auto") options.library = config_.gpu().nccl();
    auto fabric = devices_.fabric(options);
    if (!fabric.ok()) {
      peer_options_.no_peers = std::string(fabric.status().message());
      logger_.Log(LogLevel::kInfo, "pages do not move to and from other GPUs over NCCL",
                  {{"reason", peer_options_.no_peers}});
      return;
    }
    hub_ = std::make_unique<PeerHub>(PeerHubOptions{}, *std::move(fabric));
  }

  void StartArchiving() {
    archive_worker_ = std::make_unique<ArchiveWorker>(*store_, [this](const absl::Status& status) {
      if (status.ok()) {
        logger_.Log(LogLevel::kInfo, "the disk tier takes pages again");
      } else {
        logger_.Log(LogLevel::kError, "the disk tier cannot write: pages stay in memory alone",
                    {{"reason", std::string(status.message())}});
      }
    });
  }

  void StartCopying() {
    const bool in_use = store_->copies()->degraded().empty();
    grpc_->GetHealthCheckService()->SetServingStatus(kGpuTierHealth, in_use);
    if (!in_use) return;
    copy_worker_ =
        std::make_unique<CopyWorker>(*store_, CopyMoverOptions{}, [this](const std::string& why) {
          logger_.Log(LogLevel::kError,
                      "the GPU tier is out of use until a restart: serving from host memory alone",
                      {{"reason", why}});
          grpc_->GetHealthCheckService()->SetServingStatus(kGpuTierHealth, false);
        });
  }

  absl::Status Listen() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMessageBytesMax);
    builder.SetMaxSendMessageSize(kMessageBytesMax);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    // A client that is gone without a word is noticed: its session, and with it its leases, end.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                               0);  // a second server on a port is an error, not a lottery
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
    std::vector<int> ports(static_cast<size_t>(config_.listen_size()), -1);
    for (int i = 0; i < config_.listen_size(); ++i) {
      builder.AddListeningPort(config_.listen(i), grpc::InsecureServerCredentials(),
                               &ports[static_cast<size_t>(i)]);
    }
    builder.RegisterService(cache_.get());
    builder.RegisterService(admin_.get());
    builder.RegisterService(peer_.get());
    lookups_ = std::make_unique<LookupThreads>(*cache_, builder);
    grpc_ = builder.BuildAndStart();
    for (int i = 0; i < config_.listen_size(); ++i) {
      const std::string& address = config_.listen(i);
      const int port = ports[static_cast<size_t>(i)];
      if (port <= 0) {
        return absl::UnavailableError(
            absl::StrCat("cannot listen on ", address, ": in use, or not an address of this host"));
      }
      const bool is_unix = address.starts_with("unix:");
      addresses_.push_back(
          is_unix ? address : absl::StrCat(address.substr(0, address.rfind(':')), ":", port));
    }
    if (grpc_ == nullptr) return absl::UnavailableError("gRPC did not start; its log says why");
    lookups_->Start();
    for (const char* service : {"oscarkv.v1.KvCache", "oscarkv.v1.Admin", "oscarkv.v1.Peer"}) {
      grpc_->GetHealthCheckService()->SetServingStatus(service, true);
    }
    return absl::OkStatus();
  }

  ServerSnapshot Take() const {
    ServerSnapshot snapshot;
    snapshot.version = std::string(kVersion);
    snapshot.uptime_s = absl::ToDoubleSeconds(absl::Now() - context_->start());
    snapshot.store = store_->Stats();
    for (const NamespaceStats& stats : snapshot.store.namespaces) {
      const Namespace* space = store_->FindNamespace(stats.fingerprint);
      snapshot.namespaces.push_back({absl::BytesToHexString(stats.fingerprint).substr(0, 12),
                                     space == nullptr ? "" : space->spec().model,
                                     space == nullptr ? "" : space->spec().tenant});
    }
    snapshot.inflight_bytes = context_->inflight_bytes();
    if (holds_ != nullptr) {
      const DeviceHoldsStats holds = holds_->Stats();
      snapshot.peers.held_bytes = holds.bytes;
      snapshot.peers.holds_lost = holds.expired;
    }
    if (staging_ != nullptr) snapshot.peers.staged_bytes = staging_->used_bytes();
    if (door_ != nullptr) {
      const DoorStats door = door_->Stats();
      snapshot.shared_memory = {.connections = door.links,
                                .mapped_bytes = door.mapped_bytes,
                                .staging_bytes = door.staging_bytes,
                                .revoked = door.revoked};
    }
    if (hub_ != nullptr) {
      const PeerHubStats peers = hub_->Stats();
      snapshot.peers.peers = peers.peers;
      snapshot.peers.peers_ended = peers.broken;
    }
    for (size_t i = 0; i < kMethods; ++i) {
      const auto method = static_cast<Method>(i);
      const std::string name(MethodName(method));
      for (size_t code = 0; code < kStatusCodes; ++code) {
        const uint64_t count = context_->calls().count(method, code);
        if (count > 0) snapshot.calls.push_back({name, CodeName(code), count});
      }
      LatencyHistogram::Snapshot latency = context_->calls().latency(method);
      if (latency.count > 0) snapshot.latencies.push_back({name, latency});
    }
    for (const DataPath path : kDataPaths) {
      for (const Direction direction : kDirections) {
        TransferUse use{.path = std::string(DataPathName(path)),
                        .direction = std::string(DirectionName(direction)),
                        .bytes = context_->transfers().bytes(path, direction),
                        .duration = context_->transfers().duration(path, direction)};
        if (use.duration.count > 0) snapshot.transfers.push_back(std::move(use));
      }
    }
    return snapshot;
  }

  const v1::ServerConfig config_;
  const ServerDevices devices_;
  const Logger logger_;
  const SystemClock clock_;
  CorruptLog corrupt_log_{logger_, clock_};
  std::unique_ptr<PageStore> store_;
  Catalog* catalog_ = nullptr;            // the store's archive's; null without a disk tier
  std::unique_ptr<StagingArea> staging_;  // null: nothing is pushed from GPUs
  PeerOptions peer_options_;
  std::unique_ptr<DeviceHolds> holds_;  // null without a GPU tier; holds copies of the store's
  std::unique_ptr<PeerHub> hub_;        // null where nothing is sent from a GPU; likewise
  std::unique_ptr<RpcContext> context_;
  std::unique_ptr<CacheService> cache_;
  std::unique_ptr<AdminService> admin_;
  std::unique_ptr<PeerService> peer_;
  SharedHostTier host_;  // without the tier, which is the store's
  std::unique_ptr<Door> door_;
  std::unique_ptr<LookupThreads> lookups_;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<MetricsExposer> metrics_;
  std::unique_ptr<ArchiveWorker> archive_worker_;
  std::unique_ptr<CopyWorker> copy_worker_;  // null without a GPU tier
  std::unique_ptr<ReEncodePool> re_encoders_;
  std::unique_ptr<Ticker> ticker_;
  std::vector<std::string> addresses_;
  std::string metrics_address_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<Server>> Server::Create(const v1::ServerConfig& config,
                                                       const ServerDevices& devices) {
  auto server = std::unique_ptr<Server>(new Server(std::make_unique<Impl>(config, devices)));
  OSCARKV_RETURN_IF_ERROR(server->impl_->Start());
  return server;
}

const std::vector<std::string>& Server::addresses() const { return impl_->addresses(); }
const std::string& Server::metrics_address() const { return impl_->metrics_address(); }
void Server::set_drain_request(absl::AnyInvocable<void(absl::Duration)> request) {
  impl_->context().set_drain_request(std::move(request));
}
void Server::Reload(const absl::StatusOr<v1::ServerConfig>& config) { impl_->Reload(config); }
void Server::Shutdown(absl::Duration grace) { impl_->Shutdown(grace); }

}  // namespace oscarkv
