// The worker library: pushes a worker's KV pages to a store and fetches them back into its paged
// cache, encoding and decoding on the way.
//
// A dead, slow or full store is a miss: results say so (`store`, item statuses, counters), and no
// call outlives its deadline. A status that is not OK means that the caller's arguments are wrong.
//
// Client and Namespace are thread-safe. Nothing is started before the first call, so a process may
// create them and fork before that; not after.
#ifndef OSCARKV_CLIENT_CPP_CLIENT_H_
#define OSCARKV_CLIENT_CPP_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/cpp/hints.h"
#include "client/cpp/options.h"
#include "client/cpp/server_stats.h"
#include "client/cpp/stored_pages.h"
#include "kernels/codec/page_codec.h"
#include "proto/wire/data_path.h"
#include "proto/wire/item_status.h"
#include "proto/wire/namespace_spec.h"

namespace oscarkv::client {

class Connection;
class PendingFetch;

// What to do with a hit that ends in PACKED pages: quality depends on the most recent tokens more
// than on any others.
enum class TailPolicy {
  kTake,       // use every page found
  kRecompute,  // report the hit `recent_tokens` shorter, so that the engine computes those tokens
               // itself
};

// A lease on looked-up pages; released on destruction. Empty when none was granted.
class Lease {
 public:
  Lease() = default;
  Lease(std::shared_ptr<Connection> connection, std::string fingerprint, uint64_t id);
  Lease(Lease&& other) noexcept { *this = std::move(other); }
  Lease& operator=(Lease&& other) noexcept;
  ~Lease() { Release(); }
  void Release();
  uint64_t id() const { return id_; }
  explicit operator bool() const { return id_ != 0; }

 private:
  std::shared_ptr<Connection> connection_;
  std::string fingerprint_;
  uint64_t id_ = 0;
};

// Milliseconds that an engine would take to compute a sequence's first `tokens` tokens itself.
using RecomputeCost = std::function<double(uint64_t tokens)>;
// At one speed, whatever the length.
RecomputeCost TokensPerSecond(double tokens_per_s);

struct LookupOptions {
  bool lease = false;
  TailPolicy tail = TailPolicy::kTake;
  RecomputeCost recompute = {};  // for advice; null: none is asked for
};

// What the server said of a fetch that may follow. Handed to that fetch, it lets the client tell
// what its path takes from what others took of it.
struct FetchForecast {
  double server_ms = 0.0;    // the server's own estimate, by gRPC
  double loading_ms = 0.0;   // until what is on disk is in memory
  uint64_t bytes_ahead = 0;  // that others fetch meanwhile
};

// Whether to fetch what was found.
enum class Advice {
  kNone,       // not asked for, or nothing was found
  kLoad,       // a fetch should be at least as fast as computing the same tokens
  kRecompute,  // it should not; let go of the lease
};

struct Hit {
  absl::Status store;               // why nothing was found, when the store could not be asked
  uint32_t pages = 0;               // leading keys that are stored
  uint64_t usable_tokens = 0;       // of them, after the tail policy
  std::vector<Encoding> encodings;  // [pages]
  uint64_t bytes = 0;               // of those pages, as stored
  // Milliseconds that a fetch of them into a cache seldom takes longer than: what this client has
  // measured of its path, with what the server says of its tiers and its queue (fetch_times.h).
  double expected_ms = 0.0;
  Advice advice = Advice::kNone;
  FetchForecast forecast;  // for FetchRequest
  Lease lease;
};

// By what computing the hit's usable tokens would take.
Advice Advise(const Hit& hit, double recompute_ms);

struct PushRequest {
  std::span<const std::string> keys = {};  // consecutive pages of one sequence
  std::string parent = {};      // key of the page before keys[0]; empty at the start of a sequence
  uint64_t first_position = 0;  // absolute position of the first page's first token
  // Where the sequence ends as far as is known; pages over the last `recent_tokens` before it go
  // WIDE. 0: the end of the last page.
  uint64_t end_position = 0;
  RequestHints hints = {};
  std::span<const int64_t> slots = {};  // [keys * page_tokens] of the worker's cache
};

struct PushReport {
  absl::Status store;
  // [keys]; kSkipped also where the store could not be asked, or did not say what became of it.
  std::vector<ItemStatus> statuses;
  std::vector<std::string> messages;  // [keys], empty where all is well
  uint32_t wide_pages = 0;            // sent in each form
  uint32_t packed_pages = 0;
  DataPath path = DataPath::kGrpc;  // by which the last of them went
  uint64_t bytes_wire = 0;          // page bytes sent
  uint64_t bytes_model = 0;         // the same pages in the model's dtype
  EncodeReport encode;
};

struct FetchRequest {
  std::span<const std::string> keys = {};
  std::span<const int64_t> slots = {};  // [keys * page_tokens]; -1 leaves a token out
  uint64_t lease_id = 0;
  FetchForecast forecast = {};  // of the hit, if there was a look-up
  RequestHints hints = {};
  BlockRange layers = {};  // count 0: all
  BlockRange heads = {};   // count 0: all
  bool decoded =
      false;  // let the server decode: for clients on tiny machines; costs seven times the wire
};

struct FetchReport {
  absl::Status store;
  uint32_t pages = 0;   // leading pages that are whole in the cache
  uint64_t tokens = 0;  // of them
  // [keys]; kSkipped after the first that is not kOk. kMiss also where nobody answered, kCorrupt
  // also where the answer made no sense.
  std::vector<ItemStatus> statuses;
  DataPath path = DataPath::kGrpc;  // by which the last of them came
  uint64_t bytes_wire = 0;
};

struct PersistReport {
  // FAILED_PRECONDITION: the server has no disk tier, or the namespace's transform set is not
  // there.
  absl::Status store;
  // [keys]. kOk: durable, with the pages that it extends, its namespace and its transform set.
  // kMiss, kEvicted, kCorrupt: not stored. kNoSpace, kQuota: the disk, or the tenant's share of it,
  // does not take it. kBusy: the time was up. kSkipped: a page that it extends is not durable; also
  // where the store could not be asked, or did not say what became of it.
  std::vector<ItemStatus> statuses;
  std::vector<std::string> messages;  // [keys], empty where all is well
  // Whether every page is durable.
  bool durable() const;
};

// How a fetch that is on its way tells what has come. The functions are called on a thread of the
// client's; a lock that the caller holds while it waits for them would stop it for good.
struct StartFetchOptions {
  // Of the fetch's layers, how many come together at most, all pages of them before the next: with
  // fewer the first are there sooner, for more calls. 0: all, or as the sink has them.
  uint32_t layers_at_once = 0;
  // These layers have come: their pages 0..pages-1 are whole in the cache.
  absl::AnyInvocable<void(BlockRange layers, uint32_t pages)> on_layers = nullptr;
  absl::AnyInvocable<void(const absl::StatusOr<FetchReport>& report)> done = nullptr;
};

struct ListedKey {
  std::string key;
  std::string parent;
  Encoding encoding = Encoding::kWide;
  std::string tier;  // as in TierUse
  uint64_t bytes = 0;
  uint64_t first_position = 0;
};

// How pages travel in one direction.
struct PathUse {
  std::optional<DataPath> path;  // none: both ends have and may use no common one
  // For pages in a GPU's memory, where the sink or source can: what comes before that path. None:
  // nothing does, or no session has been opened yet.
  std::optional<DataPath> device_path;
  std::string reason;      // for people: why not a better one; empty where there is none
  uint64_t fallbacks = 0;  // times that a path proved to be out of use, at most one a session
};

// What this client has seen; monotonic.
struct ClientCounters {
  uint64_t calls = 0;
  uint64_t failures = 0;  // calls that ended without an answer
  uint64_t retries = 0;
  uint64_t busy_retries = 0;  // pages offered to, or asked of, a store again that was too busy
  uint64_t reopens = 0;       // after the server restarted
  uint64_t refused_by_breaker = 0;
  uint64_t corrupt_pages = 0;  // a checksum did not hold on this side
  // Of pushes that found no room in the queue; bytes are of K and V in the model's dtype.
  uint64_t pushes_dropped = 0;
  uint64_t pages_dropped = 0;
  uint64_t bytes_dropped = 0;
};

// Pages of one namespace. Outlives the Client that opened it if need be.
class Namespace {
 public:
  class Impl;
  // Cancels the calls under way and returns when every `done` has run. Not to be called by a
  // `done`.
  ~Namespace();
  Namespace(const Namespace&) = delete;
  Namespace& operator=(const Namespace&) = delete;

  const NamespaceSpec& spec() const;
  const PageCodec& codec() const;

  // Leading keys that are stored. kInvalidArgument: a key of the wrong length, or more keys than
  // the server's limit.
  absl::StatusOr<Hit> Lookup(std::span<const std::string> keys,
                             const LookupOptions& options = {}) const;
  // Encodes and stores pages. One that is kBusy (the server makes room, or has too much under way)
  // is offered again until the deadline. kInvalidArgument: slots or view do not fit.
  absl::StatusOr<PushReport> Push(const EngineView& cache, const PushRequest& request) const;
  // What Push would refuse the arguments with.
  absl::Status CheckPush(const EngineView& cache, const PushRequest& request) const;
  // Fetches pages and decodes them into the cache; stops at the first page that is not there. One
  // that is kBusy (the server makes room to read it from disk into, or has too much under way) is
  // asked for again until the deadline.
  // Nothing of a page that fails is written; but of one that is kFenced, which the server took back
  // while it was read in shared memory, blocks may have been.
  absl::StatusOr<FetchReport> Fetch(const EngineView& cache, const FetchRequest& request) const;

  // The same for pages that are encoded and decoded elsewhere (client/gpu): request.slots is the
  // source's or sink's. Their errors are returned, too. Until a sink's Finish nobody has looked at
  // checksums: unlike Fetch's, blocks of a page that fails, and later pages, may have been written.
  absl::StatusOr<PushReport> PushFrom(PageSource& source, const PushRequest& request) const;
  absl::StatusOr<FetchReport> FetchTo(PageSink& sink, const FetchRequest& request) const;

  // Starts a fetch that can be followed layer by layer and cancelled (client/cpp/pending_fetch.h).
  // What the view points to must stay until it has ended. Unlike Fetch's, layers of a page of which
  // a later layer fails have been written.
  std::unique_ptr<PendingFetch> StartFetch(const EngineView& cache, const FetchRequest& request,
                                           StartFetchOptions options = {}) const;
  // The same to a sink, as FetchTo, which must stay until it has ended. Layers have come when the
  // sink has taken them: a GpuPageSink's are in the cache for streams that wait for them
  // (WaitLayer).
  std::unique_ptr<PendingFetch> StartFetchTo(PageSink& sink, const FetchRequest& request,
                                             StartFetchOptions options = {}) const;

  // The asynchronous forms run on the client's own threads; `done` runs exactly once, on one of
  // them. What the request and the view point to must stay until then.
  //
  // A push waits behind those before it, on a thread for pushes. False: ClientOptions::
  // push_queue_bytes of K and V wait already; it is dropped and counted, and `done` (which may be
  // null) is told RESOURCE_EXHAUSTED.
  bool PushAsync(const EngineView& cache, const PushRequest& request,
                 absl::AnyInvocable<void(absl::StatusOr<PushReport>) &&> done) const;
  void FetchAsync(const EngineView& cache, const FetchRequest& request,
                  absl::AnyInvocable<void(absl::StatusOr<FetchReport>) &&> done) const;
  void LookupAsync(std::vector<std::string> keys, const LookupOptions& options,
                   absl::AnyInvocable<void(absl::StatusOr<Hit>) &&> done) const;

  // Has pages that are stored written to the server's disk, with those that they extend: after a
  // crash of the server they are there, unless they went for room, expired or were deleted.
  absl::StatusOr<PersistReport> Persist(std::span<const std::string> keys,
                                        absl::Duration timeout) const;
  void PersistAsync(std::vector<std::string> keys, absl::Duration timeout,
                    absl::AnyInvocable<void(absl::StatusOr<PersistReport>) &&> done) const;

  // [keys] statuses; every one kMiss when the store cannot be asked.
  absl::StatusOr<std::vector<ItemStatus>> Delete(std::span<const std::string> keys) const;
  // Refreshes recency as a fetch would. kQuota: used, but there is no room to pin it.
  absl::StatusOr<std::vector<ItemStatus>> Touch(std::span<const std::string> keys,
                                                const RequestHints& hints = {}) const;
  // For operators: these return the store's error.
  absl::StatusOr<std::vector<ListedKey>> List(uint32_t keys_max) const;
  absl::StatusOr<uint64_t> Clear() const;

 private:
  friend class Client;
  explicit Namespace(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Client {
 public:
  // Does not touch the network. kInvalidArgument: an option out of range.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const ClientOptions& options);
  ~Client();

  // Opens (and makes, when `create`) a namespace, and uploads `transform_file` (the bytes of a
  // transform file whose hash the spec names) when the server does not have it. kInvalidArgument:
  // spec and file do not belong together. kFailedPrecondition: the server refuses the spec, naming
  // both sides. A server that cannot be asked does not fail the call: the namespace opens when it
  // comes back, with the same settings.
  absl::StatusOr<std::unique_ptr<Namespace>> OpenNamespace(const NamespaceSpec& spec,
                                                           std::string transform_file,
                                                           bool create = true,
                                                           const NamespaceSettings& settings = {});
  // For operators: a namespace that the server has, without its transform set. Lookup, List,
  // Delete, Touch, Clear and decoded fetches work, Push does not (kFailedPrecondition). Returns the
  // store's error when it cannot be asked.
  absl::StatusOr<std::unique_ptr<Namespace>> InspectNamespace(const NamespaceSpec& spec);
  absl::Status PutTransformSet(const std::string& transform_file);
  // For operators: the server forgets the set; returns whether it had it. kFailedPrecondition:
  // namespaces need it, which are named.
  absl::StatusOr<bool> DeleteTransformSet(const std::string& hash);
  absl::StatusOr<std::string> GetTransformSet(
      const std::string& hash);  // the file's bytes, verified
  absl::StatusOr<ServerStats> Stats();
  absl::StatusOr<std::string> StatsJson();  // Admin.Stats as JSON
  // Asks the server to verify what it holds; `progress` gets (pages checked, pages in all,
  // corrupt).
  absl::Status Verify(uint64_t bytes_per_second,
                      absl::AnyInvocable<void(uint64_t, uint64_t, uint64_t)> progress);
  ClientCounters counters() const;
  // Waits until no push is queued or under way: whether that came in time.
  bool AwaitPushes(absl::Duration timeout) const;
  // By which path pages travel now; agreed on when the first fetch or push opens a session.
  PathUse path(Direction direction) const;
  // Ends the session, and with it the leases. Calls from now on are misses, those of its namespaces
  // too. Nobody has to call it.
  void Close();

 private:
  explicit Client(std::shared_ptr<Connection> connection);
  std::shared_ptr<Connection> connection_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CLIENT_H_
