#include "client/cli/transform_report.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

using nlohmann::json;

// Reads the fields of one object; the first that is of another kind than expected is remembered.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) Fail("", "an object");
  }

  void Get(const char* name, std::string* text) {
    if (const json* value = Find(name)) {
      value->is_string() ? void(*text = value->get<std::string>()) : Fail(name, "a text");
    }
  }
  // JSON has no infinity: null stands for it.
  void Get(const char* name, double* number) {
    if (object_.is_object() && object_.contains(name) && object_[name].is_null()) {
      *number = std::numeric_limits<double>::infinity();
    }
    if (const json* value = Find(name)) {
      value->is_number() ? void(*number = value->get<double>()) : Fail(name, "a number");
    }
  }
  void Get(const char* name, uint64_t* count) {
    if (const json* value = Find(name)) {
      value->is_number_unsigned() ? void(*count = value->get<uint64_t>()) : Fail(name, "a count");
    }
  }
  void Get(const char* name, std::vector<std::string>* texts) {
    for (const json& value : List(name)) {
      value.is_string() ? texts->push_back(value.get<std::string>()) : Fail(name, "texts");
    }
  }
  void Get(const char* name, std::vector<double>* numbers) {
    for (const json& value : List(name)) {
      value.is_number() ? numbers->push_back(value.get<double>()) : Fail(name, "numbers");
    }
  }
  // The elements of a list, none when it is not there.
  const std::vector<json>& List(const char* name) {
    static const std::vector<json> kNone;
    const json* value = Find(name);
    if (value != nullptr && value->is_array()) return value->get_ref<const json::array_t&>();
    if (value != nullptr) Fail(name, "a list");
    return kNone;
  }
  std::string Where(const char* name, size_t index) const {
    return absl::StrCat(where_, name, "[", index, "].");
  }
  // Also of fields read through another.
  void Take(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }
  const absl::Status& status() const { return status_; }

 private:
  const json* Find(const char* name) const {
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void Fail(const char* name, const char* expected) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("the file's report: ", where_, name, " must be ", expected));
  }

  const json& object_;
  const std::string where_;
  absl::Status status_;
};

std::vector<ReportedScore> ReadScores(Fields& layer, const char* name) {
  std::vector<ReportedScore> scores;
  for (const json& value : layer.List(name)) {
    Fields fields(value, layer.Where(name, scores.size()));
    ReportedScore score;
    fields.Get("method", &score.method);
    fields.Get("error", &score.error);
    fields.Get("clip_ratios", &score.clip_ratios);
    layer.Take(fields.status());
    scores.push_back(std::move(score));
  }
  return scores;
}

ReportedLayer ReadLayer(Fields& fields) {
  ReportedLayer layer;
  fields.Get("k_method", &layer.k_method);
  fields.Get("v_method", &layer.v_method);
  fields.Get("error", &layer.error);
  fields.Get("naive_error", &layer.naive_error);
  fields.Get("tokens", &layer.tokens);
  fields.Get("kv_samples", &layer.kv_samples);
  fields.Get("scored_tokens", &layer.scored_tokens);
  fields.Get("scored_recent_tokens", &layer.scored_recent_tokens);
  layer.k = ReadScores(fields, "k_scores");
  layer.v = ReadScores(fields, "v_scores");
  return layer;
}

std::string SideTable(const char* side, const TransformReport& report,
                      std::vector<ReportedScore> ReportedLayer::*scores,
                      std::string ReportedLayer::*chosen) {
  std::string table =
      absl::StrFormat("\n%-2s %-22s %12s %8s %8s\n", side, "method", "error", "clip", "layers");
  for (const ReportedScore& first : report.layers[0].*scores) {
    std::vector<double> errors, clips;
    size_t times = 0;
    for (const ReportedLayer& layer : report.layers) {
      for (const ReportedScore& score : layer.*scores) {
        if (score.method != first.method) continue;
        errors.push_back(score.error);
        for (const double ratio : score.clip_ratios) clips.push_back(ratio > 0.0 ? ratio : 1.0);
      }
      times += layer.*chosen == first.method ? size_t{1} : size_t{0};
    }
    const double clip = Median(std::move(clips));
    absl::StrAppendFormat(
        &table, "   %-22s %12.5f %8s %8s\n", first.method, Median(std::move(errors)),
        clip < 1.0 ? absl::StrFormat("%.3f", clip) : "none", times > 0 ? absl::StrCat(times) : "");
  }
  return table;
}

}  // namespace

absl::StatusOr<TransformReport> ParseTransformReport(std::string_view text) {
  const json document = json::parse(text, nullptr, false);
  if (document.is_discarded()) {
    return absl::InvalidArgumentError("the file's report is not JSON");
  }
  Fields fields(document, "");
  TransformReport report;
  fields.Get("model", &report.model);
  fields.Get("method", &report.method);
  fields.Get("params", &report.params);
  fields.Get("k_bits", &report.k_bits);
  fields.Get("v_bits", &report.v_bits);
  fields.Get("group", &report.group);
  fields.Get("sink_tokens", &report.sink_tokens);
  fields.Get("recent_tokens", &report.recent_tokens);
  fields.Get("notes", &report.notes);
  fields.Get("warnings", &report.warnings);
  for (const json& value : fields.List("layers")) {
    Fields layer(value, fields.Where("layers", report.layers.size()));
    report.layers.push_back(ReadLayer(layer));
    fields.Take(layer.status());
  }
  OSCARKV_RETURN_IF_ERROR(fields.status());
  return report;
}

std::string ScoreTable(const TransformReport& report) {
  std::string table =
      "Error of attention's output on held-back tokens, relative (squares), median over layers, "
      "with only that side\nin few bits and the sinks and the recent window exact. The first row "
      "of each side is naive INT2; layers: how\noften a method was the best.\n";
  absl::StrAppend(&table, SideTable("K", report, &ReportedLayer::k, &ReportedLayer::k_method),
                  SideTable("V", report, &ReportedLayer::v, &ReportedLayer::v_method));
  std::vector<double> both, naive;
  for (const ReportedLayer& layer : report.layers) {
    both.push_back(layer.error);
    naive.push_back(layer.naive_error);
  }
  const auto worst = std::max_element(both.begin(), both.end()) - both.begin();
  absl::StrAppendFormat(&table,
                        "\nK and V together: %.5f chosen, %.5f naive (medians); worst layer: %d "
                        "(%.5f chosen, %.5f naive)\n",
                        Median(both), Median(naive), worst, both[static_cast<size_t>(worst)],
                        naive[static_cast<size_t>(worst)]);
  return table;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string ClipRange(const std::vector<double>& ratios) {
  const auto text = [](double ratio) {
    return ratio > 0.0 && ratio < 1.0 ? absl::StrFormat("%.3f", ratio) : std::string("none");
  };
  if (ratios.empty()) return "none";
  // None is the mildest clip: it sorts last.
  const auto mild = [](double ratio) { return ratio > 0.0 ? ratio : 1.0; };
  const auto [least, most] = std::minmax_element(
      ratios.begin(), ratios.end(), [&](double a, double b) { return mild(a) < mild(b); });
  return text(*least) == text(*most) ? text(*least) : absl::StrCat(text(*least), "-", text(*most));
}

}  // namespace oscarkv::cli
