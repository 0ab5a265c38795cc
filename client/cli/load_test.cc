#include "client/cli/load_test.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cli/kv_rows.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/transform_file.h"

namespace oscarkv::cli {

using client::Client;
using client::ClientOptions;
using client::Namespace;

namespace {

// Pages are drawn from so many pages' worth of tokens: no two pages are the same, and the values of
// any geometry fit in memory.
constexpr uint32_t kPoolPages = 2;

std::vector<std::byte> RandomValues(const Geometry& geometry, uint64_t tokens) {
  std::vector<std::byte> values(KvRows::Bytes(geometry, tokens));
  absl::BitGen random;
  const size_t element_bytes = DTypeBytes(geometry.dtype);
  for (size_t at = 0; at < values.size(); at += element_bytes) {
    const float value = absl::Gaussian<float>(random);
    switch (geometry.dtype) {
      case DType::kBf16:
        StoreLe(&values[at], FloatToBf16(value));
        break;
      case DType::kFp16:
        StoreLe(&values[at], FloatToFp16(value));
        break;
      case DType::kFp32:
        StoreLe(&values[at], value);
        break;
    }
  }
  return values;
}

// Hadamard where there is one: its sums are what real transforms cost.
absl::StatusOr<std::string> TransformFileFor(const Geometry& geometry) {
  const auto power_of_two = [](uint32_t dim) { return (dim & (dim - 1)) == 0; };
  const bool hadamard = power_of_two(geometry.k_head_dim) && power_of_two(geometry.v_head_dim);
  OSCARKV_ASSIGN_OR_RETURN(const TransformSet set,
                           hadamard ? MakeHadamardTransformSet(geometry, 0.0f, 0.0f)
                                    : MakeIdentityTransformSet(geometry, 0.0f, 0.0f));
  return SerializeTransformFile(set, "{}");
}

double Quantile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0.0;
  const auto at = static_cast<size_t>(share * static_cast<double>(sorted.size()));
  return sorted[std::min(at, sorted.size() - 1)];
}

}  // namespace

std::string_view PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kPut:
      return "put";
    case Phase::kLookup:
      return "lookup";
    case Phase::kGet:
      return "get";
    case Phase::kGetDecoded:
      return "get-decoded";
  }
  return "";
}

// One connection, its sequences in the store, and what its calls of the phase came to. Used by one
// thread at a time.
class LoadTest::Worker {
 public:
  Worker(std::unique_ptr<Client> client, std::unique_ptr<Namespace> space,
         const LoadOptions& options, std::byte* pool)
      : client_(std::move(client)),
        space_(std::move(space)),
        options_(options),
        tokens_(uint64_t{options.pages_a_call} * options.geometry.page_tokens),
        pool_tokens_(uint64_t{kPoolPages} * options.geometry.page_tokens),
        source_(options.geometry, pool_tokens_, pool),
        memory_(KvRows::Bytes(options.geometry, tokens_)),
        destination_(options.geometry, tokens_, memory_.data()),
        slots_(tokens_) {
    std::iota(slots_.begin(), slots_.end(), int64_t{0});
  }

  const Namespace& space() const { return *space_; }

  // One call; its time is recorded when it succeeds. False when the store did not answer.
  bool Call(Phase phase, PhaseResult* result, std::vector<double>* times_ms) {
    const Prepared call = Prepare(phase);
    uint64_t bytes = 0;
    const absl::Time start = absl::Now();
    const absl::Status status = Send(phase, call, &bytes);
    const absl::Duration took = absl::Now() - start;
    if (!status.ok()) {
      if (result->failed++ == 0) result->first_failure = status;
      return !absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status);
    }
    times_ms->push_back(absl::ToDoubleMilliseconds(took));
    ++result->calls;
    result->pages += call.keys.size();
    result->bytes_wire += bytes;
    if (phase != Phase::kLookup) {
      result->bytes_model +=
          call.keys.size() * space_->codec().layout(Encoding::kWide).page_bytes();
    }
    return true;
  }

  // Removes every page of this worker.
  absl::Status CleanUp() {
    while (!stored_.empty()) OSCARKV_RETURN_IF_ERROR(RemoveOldest());
    return absl::OkStatus();
  }

 private:
  struct Prepared {
    std::vector<std::string> keys;
    std::vector<int64_t> slots;
  };

  Prepared Prepare(Phase phase) {
    if (phase != Phase::kPut) {
      if (stored_.empty()) return {};
      return {stored_[absl::Uniform<size_t>(random_, 0, stored_.size())], slots_};
    }
    // Room is made between calls: removing is not measured, and takes next to no time.
    if (stored_.size() >= options_.sequences) RemoveOldest().IgnoreError();
    Prepared call;
    for (uint32_t page = 0; page < options_.pages_a_call; ++page) {
      std::string key(kSha256Bytes, '\0');
      for (char& byte : key) byte = static_cast<char>(absl::Uniform<int>(random_, 0, 256));
      call.keys.push_back(std::move(key));
    }
    for (uint64_t i = 0; i < tokens_; ++i)
      call.slots.push_back(static_cast<int64_t>(absl::Uniform(random_, uint64_t{0}, pool_tokens_)));
    return call;
  }

  absl::Status Send(Phase phase, const Prepared& call, uint64_t* bytes) {
    if (call.keys.empty()) return absl::NotFoundError("no sequence of this worker is stored");
    switch (phase) {
      case Phase::kPut:
        return Put(call, bytes);
      case Phase::kLookup:
        return LookUp(call);
      case Phase::kGet:
      case Phase::kGetDecoded:
        return Get(call, phase == Phase::kGetDecoded, bytes);
    }
    return absl::OkStatus();
  }

  absl::Status Put(const Prepared& call, uint64_t* bytes) {
    stored_.push_back(call.keys);  // whatever comes of it: some of its pages may be there
    OSCARKV_ASSIGN_OR_RETURN(
        const client::PushReport report,
        space_->Push(source_.view(),
                     {.keys = call.keys, .parent = "", .slots = std::span(call.slots)}));
    OSCARKV_RETURN_IF_ERROR(report.store);
    *bytes = report.bytes_wire;
    return AllOk(report.statuses);
  }

  absl::Status LookUp(const Prepared& call) {
    OSCARKV_ASSIGN_OR_RETURN(const client::Hit hit, space_->Lookup(call.keys));
    OSCARKV_RETURN_IF_ERROR(hit.store);
    if (hit.pages == call.keys.size()) return absl::OkStatus();
    return absl::NotFoundError(
        absl::StrCat(hit.pages, " of ", call.keys.size(), " pages were still there"));
  }

  absl::Status Get(const Prepared& call, bool decoded, uint64_t* bytes) {
    OSCARKV_ASSIGN_OR_RETURN(const client::FetchReport report,
                             space_->Fetch(destination_.view(), {.keys = call.keys,
                                                                 .slots = std::span(call.slots),
                                                                 .layers = {},
                                                                 .heads = {},
                                                                 .decoded = decoded}));
    OSCARKV_RETURN_IF_ERROR(report.store);
    *bytes = report.bytes_wire;
    return AllOk(report.statuses);
  }

  static absl::Status AllOk(const std::vector<ItemStatus>& statuses) {
    for (size_t page = 0; page < statuses.size(); ++page) {
      if (statuses[page] != ItemStatus::kOk) {
        return absl::FailedPreconditionError(
            absl::StrCat("page ", page, " is ", std::string(ItemStatusName(statuses[page]))));
      }
    }
    return absl::OkStatus();
  }

  // Removing the first page of a sequence removes them all. Its outcome does not matter: it may
  // never have been stored.
  absl::Status RemoveOldest() {
    const std::string root = stored_.front()[0];
    const uint64_t failures = client_->counters().failures;
    OSCARKV_RETURN_IF_ERROR(space_->Delete({&root, 1}).status());
    if (client_->counters().failures != failures)
      return absl::UnavailableError("pages could not be removed");
    stored_.pop_front();
    return absl::OkStatus();
  }

  const std::unique_ptr<Client> client_;
  const std::unique_ptr<Namespace> space_;
  const LoadOptions& options_;
  const uint64_t tokens_;
  const uint64_t pool_tokens_;
  const KvRows source_;
  std::vector<std::byte> memory_;
  const KvRows destination_;
  std::vector<int64_t> slots_;
  std::deque<std::vector<std::string>> stored_;  // keys of its sequences, the oldest first
  absl::BitGen random_;
};

absl::StatusOr<std::unique_ptr<LoadTest>> LoadTest::Create(const ClientOptions& store,
                                                           const LoadOptions& options) {
  NamespaceSpec spec;
  spec.tenant = "oscarkv-bench";
  spec.model = "synthetic";
  spec.hash_scheme = "random";
  spec.geometry = options.geometry;
  spec.codec.sink_tokens = 0;
  spec.codec.recent_tokens = 0;
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(spec));
  std::string transform;
  if (!options.wide) {
    OSCARKV_ASSIGN_OR_RETURN(transform, TransformFileFor(options.geometry));
    spec.codec.transform_hash = Sha256Of(AsBytes(transform));
  }
  std::unique_ptr<LoadTest> test(new LoadTest(options));
  test->values_ =
      RandomValues(options.geometry, uint64_t{kPoolPages} * options.geometry.page_tokens);
  for (uint32_t i = 0; i < options.workers; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(auto client, Client::Create(store));
    OSCARKV_ASSIGN_OR_RETURN(auto space, client->OpenNamespace(spec, transform));
    test->workers_.push_back(std::make_unique<Worker>(std::move(client), std::move(space),
                                                      test->options_, test->values_.data()));
  }
  return test;
}

LoadTest::LoadTest(const LoadOptions& options) : options_(options) {}
LoadTest::~LoadTest() { CleanUp().IgnoreError(); }

uint64_t LoadTest::page_bytes() const {
  return workers_[0]
      ->space()
      .codec()
      .layout(options_.wide ? Encoding::kWide : Encoding::kPacked)
      .page_bytes();
}

uint64_t LoadTest::page_model_bytes() const {
  return workers_[0]->space().codec().layout(Encoding::kWide).page_bytes();
}

uint64_t LoadTest::working_set_bytes() const {
  return page_bytes() * options_.pages_a_call * options_.sequences * options_.workers;
}

PhaseResult LoadTest::Run(Phase phase, const std::atomic<bool>& stop,
                          absl::FunctionRef<void(absl::Duration)> progress) {
  std::vector<PhaseResult> results(workers_.size());
  std::vector<std::vector<double>> times_ms(workers_.size());
  const absl::Time start = absl::Now();
  const auto work = [&](size_t i) {
    bool going = true;
    while (going) {
      going = workers_[i]->Call(phase, &results[i], &times_ms[i]);
      if (i == 0) progress(absl::Now() - start);
      // Relaxed: one call more or less does not matter.
      going = going && absl::Now() - start < options_.phase_time &&
              !stop.load(std::memory_order_relaxed);
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers_.size(); ++i) threads.emplace_back(work, i);
  work(0);
  for (std::thread& thread : threads) thread.join();

  PhaseResult all;
  all.phase = phase;
  all.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  std::vector<double> sorted;
  for (size_t i = 0; i < results.size(); ++i) {
    all.calls += results[i].calls;
    all.pages += results[i].pages;
    all.bytes_wire += results[i].bytes_wire;
    all.bytes_model += results[i].bytes_model;
    if (all.failed == 0) all.first_failure = results[i].first_failure;
    all.failed += results[i].failed;
    sorted.insert(sorted.end(), times_ms[i].begin(), times_ms[i].end());
  }
  std::sort(sorted.begin(), sorted.end());
  all.p50_ms = Quantile(sorted, 0.5);
  all.p99_ms = Quantile(sorted, 0.99);
  return all;
}

absl::Status LoadTest::CleanUp() {
  absl::Status status;
  for (const auto& worker : workers_) status.Update(worker->CleanUp());
  return status;
}

}  // namespace oscarkv::cli
