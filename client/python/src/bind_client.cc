// The client and its namespaces, as Python sees them. The interpreter lock is released during every
// call.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "client/cpp/client.h"
#include "client/cpp/pending_fetch.h"
#include "client/python/src/numpy_views.h"
#include "client/python/src/transform_handle.h"
#include "proto/wire/data_path.h"
#include "proto/wire/item_status.h"
#include "pybind11/stl.h"

namespace oscarkv::python {

namespace py = pybind11;
using client::Client;
using client::FetchReport;
using client::Hit;
using client::Namespace;
using client::PushReport;
using client::TailPolicy;
using py::arg;

namespace {

// Runs `call` without the interpreter lock.
template <typename Call>
auto WithoutGil(Call&& call) {
  const py::gil_scoped_release release;
  return call();
}

std::vector<std::string> Names(const std::vector<ItemStatus>& statuses) {
  std::vector<std::string> names;
  names.reserve(statuses.size());
  for (const ItemStatus status : statuses) names.emplace_back(ItemStatusName(status));
  return names;
}

std::string PathText(DataPath path) { return std::string(DataPathName(path)); }

std::string ErrorText(const absl::Status& status) {
  return status.ok()
             ? ""
             : absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
}

// `names` in the order of the enum's numbers.
template <typename Enum, size_t N>
Enum EnumOf(const char* what, const std::array<const char*, N>& names, const std::string& name) {
  for (size_t i = 0; i < N; ++i)
    if (name == names[i]) return static_cast<Enum>(i);
  throw py::value_error(absl::StrCat(what, " must be one of '", absl::StrJoin(names, "', '"),
                                     "', found '", name, "'"));
}

client::RequestHints MakeHints(const std::string& reuse, int priority, const std::string& residency,
                               uint32_t output_tokens, uint64_t request_id) {
  if (priority < -2 || priority > 2)
    throw py::value_error(absl::StrCat("priority must be -2..2, found ", priority));
  constexpr std::array kReuses = {"", "session_over", "single_shot", "will_return"};
  constexpr std::array kResidencies = {"", "normal", "may_go_first", "pinned"};
  return {.reuse = EnumOf<client::Reuse>("reuse", kReuses, reuse),
          .priority = priority,
          .residency = EnumOf<client::Residency>("residency", kResidencies, residency),
          .output_tokens = output_tokens,
          .request_id = request_id};
}

client::NamespaceSettings SettingsOf(const std::string& store_wide, int64_t page_ttl_ms) {
  const std::optional<StoreWide> mode = ParseStoreWide(store_wide);
  if (!mode && !store_wide.empty()) {
    throw py::value_error(
        absl::StrCat("store_wide must be one of '', 'never', 'tail', 'until_pressure', found '",
                     store_wide, "'"));
  }
  return {.store_wide = mode, .page_ttl = absl::Milliseconds(page_ttl_ms)};
}

client::RequestHints HintsOr(const client::RequestHints* hints) {
  return hints == nullptr ? client::RequestHints() : *hints;
}

TailPolicy TailOf(const std::string& name) {
  if (name == "take") return TailPolicy::kTake;
  if (name == "recompute") return TailPolicy::kRecompute;
  throw py::value_error(absl::StrCat("tail must be take or recompute, found '", name, "'"));
}

BlockRange RangeOf(const std::optional<std::pair<uint32_t, uint32_t>>& range, const char* name) {
  if (!range) return {};
  if (range->second <= range->first)
    throw py::value_error(absl::StrCat(name, " must be (first, end) with first < end"));
  return {range->first, range->second - range->first};
}

// `recompute`: None, tokens a second, or a function of a number of tokens.
double RecomputeMs(const py::object& recompute, uint64_t tokens) {
  if (PyCallable_Check(recompute.ptr()) != 0) return recompute(tokens).cast<double>();
  const bool number = PyNumber_Check(recompute.ptr()) != 0;
  const double tokens_per_s = number ? recompute.cast<double>() : 0.0;
  if (tokens_per_s > 0) return client::TokensPerSecond(tokens_per_s)(tokens);
  throw py::value_error(absl::StrCat(
      "recompute must be tokens a second, above 0, or a function of tokens to milliseconds, found ",
      py::repr(recompute).cast<std::string>()));
}

Hit Lookup(const Namespace& self, const std::vector<std::string>& keys, bool lease,
           const std::string& tail, const py::object& recompute) {
  if (!recompute.is_none()) RecomputeMs(recompute, 0);  // before the store is asked
  const client::LookupOptions options{.lease = lease, .tail = TailOf(tail)};
  Hit hit = ValueOrThrow(WithoutGil([&] { return self.Lookup(keys, options); }));
  if (!recompute.is_none())
    hit.advice = client::Advise(hit, RecomputeMs(recompute, hit.usable_tokens));
  return hit;
}

std::string AdviceName(client::Advice advice) {
  switch (advice) {
    case client::Advice::kLoad:
      return "load";
    case client::Advice::kRecompute:
      return "recompute";
    case client::Advice::kNone:
      break;
  }
  return "";
}

client::FetchForecast ForecastOf(const Hit* hit) {
  return hit == nullptr ? client::FetchForecast{} : hit->forecast;
}

PushReport Push(const Namespace& self, const PagedKv& kv, const py::object& slots,
                const std::vector<std::string>& keys, const std::string& parent,
                uint64_t first_position, std::optional<uint64_t> end_position,
                const client::RequestHints* hints) {
  const SlotArray places = SlotsOf(slots);
  const client::PushRequest request{.keys = keys,
                                    .parent = parent,
                                    .first_position = first_position,
                                    .end_position = end_position.value_or(0),
                                    .hints = HintsOr(hints),
                                    .slots = SlotSpan(places)};
  const EngineView view = kv.view(self.spec().geometry);
  return ValueOrThrow(WithoutGil([&] { return self.Push(view, request); }));
}

// NOLINTNEXTLINE(readability-function-size): Python's keyword arguments, one by one
FetchReport Fetch(const Namespace& self, const PagedKv& kv, const py::object& slots,
                  const std::vector<std::string>& keys, const Hit* hit,
                  const std::optional<std::pair<uint32_t, uint32_t>>& layers,
                  const std::optional<std::pair<uint32_t, uint32_t>>& heads,
                  const std::string& form, const client::RequestHints* hints) {
  if (form != "stored" && form != "decoded") {
    throw py::value_error(absl::StrCat("form must be stored or decoded, found '", form, "'"));
  }
  const SlotArray places = SlotsOf(slots);
  const client::FetchRequest request{.keys = keys,
                                     .slots = SlotSpan(places),
                                     .lease_id = hit == nullptr ? 0 : hit->lease.id(),
                                     .forecast = ForecastOf(hit),
                                     .hints = HintsOr(hints),
                                     .layers = RangeOf(layers, "layers"),
                                     .heads = RangeOf(heads, "heads"),
                                     .decoded = form == "decoded"};
  const EngineView view = kv.view(self.spec().geometry);
  return ValueOrThrow(WithoutGil([&] { return self.Fetch(view, request); }));
}

// Keeps a Python object alive on threads that have not the interpreter's lock.
std::shared_ptr<py::object> Shared(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            const py::gil_scoped_acquire acquire;
            delete held;
          }};
}

bool PushLater(const Namespace& self, py::object kv, const py::object& slots,
               std::vector<std::string> keys, std::string parent, uint64_t first_position,
               std::optional<uint64_t> end_position, const client::RequestHints* hints) {
  const EngineView view = kv.cast<const PagedKv&>().view(self.spec().geometry);
  const SlotArray places = SlotsOf(slots);
  const std::span<const int64_t> found = SlotSpan(places);
  struct Kept {
    std::shared_ptr<py::object> kv;
    std::vector<std::string> keys;
    std::vector<int64_t> slots;
  };
  const auto kept = std::make_shared<Kept>(
      Kept{Shared(std::move(kv)), std::move(keys), {found.begin(), found.end()}});
  const client::PushRequest request{.keys = kept->keys,
                                    .parent = std::move(parent),
                                    .first_position = first_position,
                                    .end_position = end_position.value_or(0),
                                    .hints = HintsOr(hints),
                                    .slots = kept->slots};
  ThrowIfError(self.CheckPush(view, request));
  return WithoutGil(
      [&] { return self.PushAsync(view, request, [kept](const absl::StatusOr<PushReport>&) {}); });
}

// NOLINTNEXTLINE(readability-function-size): Python's keyword arguments, one by one
std::unique_ptr<client::PendingFetch> StartFetch(
    const Namespace& self, const PagedKv& kv, const py::object& slots,
    const std::vector<std::string>& keys, const Hit* hit,
    const std::optional<std::pair<uint32_t, uint32_t>>& layers,
    const std::optional<std::pair<uint32_t, uint32_t>>& heads, uint32_t layers_at_once,
    const client::RequestHints* hints) {
  const SlotArray places = SlotsOf(slots);
  const client::FetchRequest request{.keys = keys,
                                     .slots = SlotSpan(places),
                                     .lease_id = hit == nullptr ? 0 : hit->lease.id(),
                                     .hints = HintsOr(hints),
                                     .layers = RangeOf(layers, "layers"),
                                     .heads = RangeOf(heads, "heads")};
  return self.StartFetch(kv.view(self.spec().geometry), request,
                         {.layers_at_once = layers_at_once});
}

// What `call` returns; TimeoutError where it says that it is too early.
template <typename Call>
auto InTime(Call&& call) {
  auto result = WithoutGil(call);
  if (absl::IsDeadlineExceeded(result.status())) {
    PyErr_SetString(PyExc_TimeoutError, std::string(result.status().message()).c_str());
    throw py::error_already_set();
  }
  return ValueOrThrow(std::move(result));
}

void BindPendingFetch(py::module_& module) {
  using client::PendingFetch;
  py::class_<PendingFetch>(module, "PendingFetch",
                           "A fetch on its way. Collecting it cancels it. With select or asyncio: "
                           "fileno() is readable when layers have come and when it has ended.",
                           py::release_gil_before_calling_cpp_dtor())
      .def(
          "wait_layer",
          [](const PendingFetch& f, uint32_t layer, int timeout_ms) {
            return InTime([&] { return f.AwaitLayer(layer, absl::Milliseconds(timeout_ms)); });
          },
          arg("layer"), arg("timeout_ms") = 2000,
          "How many pages, from the first on, are whole in `layer`, waiting for it; TimeoutError "
          "when that is not known in time.")
      .def(
          "result",
          [](const PendingFetch& f, int timeout_ms) {
            return InTime([&] { return f.Await(absl::Milliseconds(timeout_ms)); });
          },
          arg("timeout_ms") = 2000, "What fetch() returns, waiting for it; TimeoutError as above.")
      .def_property_readonly("done", &PendingFetch::done)
      .def("cancel", &PendingFetch::Cancel,
           "Ends it soon, whatever the store does: the page that is being decoded is the last that "
           "is written.")
      .def("fileno", &PendingFetch::event_fd);
}

// What is made elsewhere (oscarkv._gpu) and handed through.
void BindStoredPages(py::module_& module) {
  const py::class_<client::PageSink> sink(module, "_PageSink", "Takes the pages of a fetch.");
  const py::class_<client::PageSource> source(module, "_PageSource", "Gives the pages of a push.");
}

PushReport PushFrom(const Namespace& self, client::PageSource& source,
                    const std::vector<std::string>& keys, const std::string& parent,
                    uint64_t first_position, std::optional<uint64_t> end_position) {
  const client::PushRequest request{.keys = keys,
                                    .parent = parent,
                                    .first_position = first_position,
                                    .end_position = end_position.value_or(0)};
  return ValueOrThrow(WithoutGil([&] { return self.PushFrom(source, request); }));
}

std::unique_ptr<client::PendingFetch> StartFetchTo(
    const Namespace& self, client::PageSink& sink, const std::vector<std::string>& keys,
    const Hit* hit, const std::optional<std::pair<uint32_t, uint32_t>>& layers,
    const std::optional<std::pair<uint32_t, uint32_t>>& heads, uint32_t layers_at_once) {
  const client::FetchRequest request{.keys = keys,
                                     .lease_id = hit == nullptr ? 0 : hit->lease.id(),
                                     .forecast = ForecastOf(hit),
                                     .layers = RangeOf(layers, "layers"),
                                     .heads = RangeOf(heads, "heads")};
  return self.StartFetchTo(sink, request, {.layers_at_once = layers_at_once});
}

void BindPersistReport(py::module_& module) {
  using client::PersistReport;
  py::class_<PersistReport>(module, "PersistReport", "What became durable.")
      .def_property_readonly("statuses", [](const PersistReport& r) { return Names(r.statuses); })
      .def_readonly("messages", &PersistReport::messages)
      .def_property_readonly("durable", &PersistReport::durable)
      .def_property_readonly(
          "error", [](const PersistReport& r) { return ErrorText(r.store); },
          "Why the store could not be asked, or keeps nothing on disk; empty when it does.");
}

void BindHints(py::module_& module) {
  using client::RequestHints;
  py::class_<RequestHints>(
      module, "RequestHints",
      "What a worker may tell the store of a request. reuse: 'session_over', 'single_shot' or "
      "'will_return'. priority: -2..2. residency: 'normal', 'may_go_first' or 'pinned'. "
      "output_tokens: that the request generated. request_id: equal for the pushes of one request.")
      .def(py::init(&MakeHints), arg("reuse") = "", arg("priority") = 0, arg("residency") = "",
           arg("output_tokens") = 0, arg("request_id") = 0)
      .def_readonly("priority", &RequestHints::priority)
      .def_readonly("output_tokens", &RequestHints::output_tokens)
      .def_readonly("request_id", &RequestHints::request_id);
}

void BindReports(py::module_& module) {
  py::class_<Hit>(module, "Hit",
                  "What a lookup found. Holds its lease until released or collected.",
                  py::release_gil_before_calling_cpp_dtor())
      .def_property_readonly("pages", [](const Hit& h) { return h.pages; })
      .def_property_readonly("usable_tokens", [](const Hit& h) { return h.usable_tokens; })
      .def_property_readonly("encodings",
                             [](const Hit& h) {
                               std::vector<std::string> names;
                               for (const Encoding e : h.encodings)
                                 names.push_back(e == Encoding::kWide ? "wide" : "packed");
                               return names;
                             })
      .def_property_readonly("bytes", [](const Hit& h) { return h.bytes; })
      .def_property_readonly("expected_ms", [](const Hit& h) { return h.expected_ms; })
      .def_property_readonly(
          "advice", [](const Hit& h) { return AdviceName(h.advice); },
          "'load' or 'recompute', where it was asked for and something was found; else empty.")
      .def_property_readonly("lease", [](const Hit& h) { return h.lease.id(); })
      .def_property_readonly(
          "error", [](const Hit& h) { return ErrorText(h.store); },
          "Why the store could not be asked; empty when it was.")
      .def("release", [](Hit& h) { WithoutGil([&] { h.lease.Release(); }); });
  py::class_<PushReport>(module, "PushReport", "What became of each page pushed.")
      .def_property_readonly("statuses", [](const PushReport& r) { return Names(r.statuses); })
      .def_readonly("messages", &PushReport::messages)
      .def_readonly("wide_pages", &PushReport::wide_pages)
      .def_readonly("packed_pages", &PushReport::packed_pages)
      .def_readonly("bytes_wire", &PushReport::bytes_wire)
      .def_readonly("bytes_model", &PushReport::bytes_model)
      .def_property_readonly("nonfinite_rows",
                             [](const PushReport& r) { return r.encode.nonfinite_rows; })
      .def_property_readonly(
          "path", [](const PushReport& r) { return PathText(r.path); },
          "By which the last pages went: 'grpc', 'shm', 'nccl', 'ipc'.")
      .def_property_readonly("error", [](const PushReport& r) { return ErrorText(r.store); });
  py::class_<FetchReport>(module, "FetchReport", "How much of a fetch is in the cache.")
      .def_readonly("pages", &FetchReport::pages)
      .def_readonly("tokens", &FetchReport::tokens)
      .def_property_readonly("statuses", [](const FetchReport& r) { return Names(r.statuses); })
      .def_readonly("bytes_wire", &FetchReport::bytes_wire)
      .def_property_readonly(
          "path", [](const FetchReport& r) { return PathText(r.path); },
          "By which the last pages came.")
      .def_property_readonly("error", [](const FetchReport& r) { return ErrorText(r.store); });
}

void BindNamespace(py::module_& module) {
  using Range = std::optional<std::pair<uint32_t, uint32_t>>;
  py::class_<Namespace>(module, "Namespace", "Pages of one namespace of a store.",
                        py::release_gil_before_calling_cpp_dtor())
      .def_property_readonly("spec", [](const Namespace& n) { return n.spec(); })
      .def("lookup", &Lookup, arg("keys"), arg("lease") = false, arg("tail") = "take",
           arg("recompute") = py::none(),
           "Leading keys that are stored. `lease` holds them; tail='recompute' leaves the recent "
           "window of a hit that ends in packed pages to the engine. recompute: what computing "
           "costs, as tokens a second or as a function of tokens to milliseconds, for the hit's "
           "advice.")
      .def("push", &Push, arg("kv"), arg("slots"), arg("keys"), arg("parent") = py::bytes(),
           arg("first_position") = 0, arg("end_position") = py::none(), arg("hints") = py::none(),
           "Encodes and stores the pages at `slots`, [len(keys) * page_tokens].")
      .def("fetch", &Fetch, arg("kv"), arg("slots"), arg("keys"), arg("hit") = nullptr,
           arg("layers") = Range(), arg("heads") = Range(), arg("form") = "stored",
           arg("hints") = py::none(),
           "Fetches pages into the cache, up to the first that is not there. layers and heads are "
           "(first, end).")
      .def(
          "push_later", &PushLater, arg("kv"), arg("slots"), arg("keys"),
          arg("parent") = py::bytes(), arg("first_position") = 0, arg("end_position") = py::none(),
          arg("hints") = py::none(),
          "Queues a push, and returns at once: False when the queue is full, and it is dropped and "
          "counted (Client.counters). What lies at `slots` must stay until it has been pushed.")
      .def("start_fetch", &StartFetch, py::keep_alive<0, 2>(), arg("kv"), arg("slots"), arg("keys"),
           arg("hit") = nullptr, arg("layers") = Range(), arg("heads") = Range(),
           arg("layers_at_once") = 1, arg("hints") = py::none(),
           "Starts a fetch that comes layer by layer, `layers_at_once` of them at a time (0: all).")
      .def("_push_from", &PushFrom, arg("source"), arg("keys"), arg("parent"),
           arg("first_position"), arg("end_position"))
      .def("_start_fetch_to", &StartFetchTo, py::keep_alive<0, 2>(), arg("sink"), arg("keys"),
           arg("hit"), arg("layers"), arg("heads"), arg("layers_at_once"))
      .def(
          "persist",
          [](const Namespace& n, const std::vector<std::string>& keys, int timeout_ms) {
            return ValueOrThrow(
                WithoutGil([&] { return n.Persist(keys, absl::Milliseconds(timeout_ms)); }));
          },
          arg("keys"), arg("timeout_ms") = 30000,
          "Has pages that are stored written to the server's disk, with those that they extend, "
          "and "
          "waits for that.")
      .def(
          "delete",
          [](const Namespace& n, const std::vector<std::string>& keys) {
            return Names(ValueOrThrow(WithoutGil([&] { return n.Delete(keys); })));
          },
          arg("keys"))
      .def(
          "touch",
          [](const Namespace& n, const std::vector<std::string>& keys,
             const client::RequestHints* hints) {
            return Names(ValueOrThrow(WithoutGil([&] { return n.Touch(keys, HintsOr(hints)); })));
          },
          arg("keys"), arg("hints") = py::none(),
          "Refreshes recency as a fetch would; with hints, says what to expect of the sequence.")
      .def(
          "list",
          [](const Namespace& n, uint32_t keys_max) {
            std::vector<py::bytes> keys;
            for (const auto& listed : ValueOrThrow(WithoutGil([&] { return n.List(keys_max); }))) {
              keys.emplace_back(listed.key);
            }
            return keys;
          },
          arg("keys_max") = 1000)
      .def("clear",
           [](const Namespace& n) { return ValueOrThrow(WithoutGil([&] { return n.Clear(); })); });
}

std::unique_ptr<Client> MakeClient(const std::string& endpoint, int timeout_ms,
                                   const std::string& name, int control_timeout_ms, int attempts,
                                   int breaker_failures, int breaker_pause_ms, int bulk_channels,
                                   uint64_t bulk_part_bytes, uint64_t push_queue_bytes) {
  client::ClientOptions options;
  options.endpoint = endpoint;
  if (!name.empty()) options.name = name;
  options.lookup_timeout = options.fetch_timeout = options.push_timeout =
      absl::Milliseconds(timeout_ms);
  options.control_timeout = absl::Milliseconds(control_timeout_ms);
  options.attempts = attempts;
  options.bulk_channels = bulk_channels;
  options.bulk_part_bytes = bulk_part_bytes;
  options.push_queue_bytes = push_queue_bytes;
  options.breaker.failures = breaker_failures;
  options.breaker.pause = absl::Milliseconds(breaker_pause_ms);
  options.breaker.pause_max = std::max(options.breaker.pause_max, options.breaker.pause);
  return ValueOrThrow(Client::Create(options));
}

}  // namespace

void BindClient(py::module_& module) {
  BindStoredPages(module);
  BindHints(module);
  BindReports(module);
  BindPersistReport(module);
  BindPendingFetch(module);
  BindNamespace(module);
  py::class_<Client>(module, "Client",
                     "A store. A dead or slow one is a miss, never an exception; misuse raises "
                     "ValueError. Create it after forking, not before. timeout_ms is the deadline "
                     "of look-ups, pushes and fetches, control_timeout_ms of everything else.",
                     py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&MakeClient), arg("endpoint") = "127.0.0.1:7411", arg("timeout_ms") = 2000,
           arg("name") = "", py::kw_only(), arg("control_timeout_ms") = 5000, arg("attempts") = 3,
           arg("breaker_failures") = 5, arg("breaker_pause_ms") = 2000, arg("bulk_channels") = 0,
           arg("bulk_part_bytes") = client::ClientOptions().bulk_part_bytes,
           arg("push_queue_bytes") = client::ClientOptions().push_queue_bytes)
      .def(
          "open",
          [](Client& c, const NamespaceSpec& spec, bool create, const TransformHandle* transforms,
             const std::string& store_wide, int64_t page_ttl_ms) {
            const std::string file = transforms == nullptr ? "" : *transforms->file;
            const client::NamespaceSettings settings = SettingsOf(store_wide, page_ttl_ms);
            return ValueOrThrow(
                WithoutGil([&] { return c.OpenNamespace(spec, file, create, settings); }));
          },
          arg("spec"), arg("create") = true, arg("transforms") = nullptr, arg("store_wide") = "",
          arg("page_ttl_ms") = 0,
          "Opens a namespace, and uploads its transform set when the server lacks it. store_wide: "
          "'never', 'tail' or 'until_pressure'; page_ttl_ms: pages that nobody used for so long "
          "are "
          "dropped. What is left out stays as it is on the server.")
      .def(
          "delete_transform_set",
          [](Client& c, const std::string& hash) {
            return ValueOrThrow(WithoutGil([&] { return c.DeleteTransformSet(hash); }));
          },
          arg("hash"),
          "The server forgets the set: whether it had it. Refused while namespaces need it.")
      .def(
          "put_transform_set",
          [](Client& c, const TransformHandle& t) {
            ThrowIfError(WithoutGil([&] { return c.PutTransformSet(*t.file); }));
          },
          arg("transforms"))
      .def(
          "get_transform_set",
          [](Client& c, const std::string& hash) {
            return MakeTransformHandle(
                ValueOrThrow(WithoutGil([&] { return c.GetTransformSet(hash); })));
          },
          arg("hash"))
      .def("stats",
           [](Client& c) {
             const std::string json = ValueOrThrow(WithoutGil([&] { return c.StatsJson(); }));
             return py::module_::import("json").attr("loads")(json);
           })
      .def_property_readonly("counters",
                             [](const Client& c) {
                               const client::ClientCounters counters = c.counters();
                               py::dict result;
                               result["calls"] = counters.calls;
                               result["failures"] = counters.failures;
                               result["retries"] = counters.retries;
                               result["busy_retries"] = counters.busy_retries;
                               result["reopens"] = counters.reopens;
                               result["refused_by_breaker"] = counters.refused_by_breaker;
                               result["corrupt_pages"] = counters.corrupt_pages;
                               result["pushes_dropped"] = counters.pushes_dropped;
                               result["pages_dropped"] = counters.pages_dropped;
                               result["bytes_dropped"] = counters.bytes_dropped;
                               return result;
                             })
      .def(
          "wait_pushes",
          [](const Client& c, int timeout_ms) {
            return WithoutGil([&] { return c.AwaitPushes(absl::Milliseconds(timeout_ms)); });
          },
          arg("timeout_ms") = 5000,
          "Waits until no push is queued or under way: whether that came in time.")
      .def(
          "close", [](Client& c) { WithoutGil([&] { c.Close(); }); },
          "Ends the session, and with it the leases; calls from now on are misses.")
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](Client& c, const py::args&) { WithoutGil([&] { c.Close(); }); });
}

}  // namespace oscarkv::python
