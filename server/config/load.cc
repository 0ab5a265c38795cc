#include "server/config/load.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/yaml.h>

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Walks a YAML tree and fills a message by reflection.
class YamlReader {
 public:
  explicit YamlReader(std::string_view file) : file_(file) {}

  absl::Status Read(const YAML::Node& node, Message* message) const {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsMap()) return Error(node, "expected keys and values");
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return Error(entry.first, "a key must be a name");
      const std::string name = entry.first.Scalar();
      const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
      if (field == nullptr) return Error(entry.first, UnknownKey(name, *message->GetDescriptor()));
      if (!seen.insert(name).second)
        return Error(entry.first, absl::StrCat("'", name, "' stands twice"));
      OSCARKV_RETURN_IF_ERROR(ReadField(entry.second, field, message));
    }
    return absl::OkStatus();
  }

  absl::Status Error(const YAML::Mark& mark, std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ":", mark.line + 1, ":", mark.column + 1,
                                                   ": ",
                                                   absl::string_view(what.data(), what.size())));
  }

 private:
  absl::Status Error(const YAML::Node& node, std::string_view what) const {
    return Error(node.Mark(), what);
  }

  absl::Status ReadField(const YAML::Node& node, const FieldDescriptor* field,
                         Message* message) const {
    const Reflection& reflection = *message->GetReflection();
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (is_message && !field->is_repeated())
      return Read(node, reflection.MutableMessage(message, field));
    if (!field->is_repeated()) return ReadScalar(node, field, message);
    if (node.IsScalar() && !is_message) return ReadScalar(node, field, message);  // a list of one
    if (!node.IsSequence())
      return Error(node, absl::StrCat("'", field->name(), "' must be a list"));
    for (const YAML::Node& element : node) {
      OSCARKV_RETURN_IF_ERROR(is_message ? Read(element, reflection.AddMessage(message, field))
                                         : ReadScalar(element, field, message));
    }
    return absl::OkStatus();
  }

  absl::Status ReadScalar(const YAML::Node& node, const FieldDescriptor* field,
                          Message* message) const {
    const Reflection& reflection = *message->GetReflection();
    if (!node.IsScalar())
      return Error(node, absl::StrCat("'", field->name(), "' must be one value"));
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        if (field->is_repeated()) {
          reflection.AddString(message, field, node.Scalar());
        } else {
          reflection.SetString(message, field, node.Scalar());
        }
        return absl::OkStatus();
      case FieldDescriptor::CPPTYPE_UINT32: {
        uint32_t value = 0;
        if (node.Scalar().starts_with("-") || !YAML::convert<uint32_t>::decode(node, value)) {
          return Error(node, absl::StrCat("'", field->name(), "' must be a whole number, found '",
                                          node.Scalar(), "'"));
        }
        reflection.SetUInt32(message, field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value = 0;
        if (node.Scalar().starts_with("-") || !YAML::convert<uint64_t>::decode(node, value)) {
          return Error(node, absl::StrCat("'", field->name(), "' must be a whole number, found '",
                                          node.Scalar(), "'"));
        }
        reflection.SetUInt64(message, field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0.0;
        if (!YAML::convert<double>::decode(node, value)) {
          return Error(node, absl::StrCat("'", field->name(), "' must be a number, found '",
                                          node.Scalar(), "'"));
        }
        reflection.SetDouble(message, field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_BOOL: {
        bool value = false;
        if (!YAML::convert<bool>::decode(node, value)) {
          return Error(node, absl::StrCat("'", field->name(), "' must be true or false, found '",
                                          node.Scalar(), "'"));
        }
        reflection.SetBool(message, field, value);
        return absl::OkStatus();
      }
      default:
        return Error(node,
                     absl::StrCat("'", field->name(), "' is of a type that YAML cannot give"));
    }
  }

  static size_t EditDistance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= b.size(); ++j) {
        const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
      }
    }
    return row[b.size()];
  }

  static std::string UnknownKey(const std::string& name, const Descriptor& descriptor) {
    std::string nearest;
    size_t least = std::max<size_t>(3, name.size() / 2);
    for (int i = 0; i < descriptor.field_count(); ++i) {
      const size_t distance = EditDistance(name.substr(0, 64), descriptor.field(i)->name());
      if (distance < least) {
        least = distance;
        nearest = descriptor.field(i)->name();
      }
    }
    return absl::StrCat("unknown key '", name, "'",
                        nearest.empty() ? "" : absl::StrCat(", did you mean '", nearest, "'?"));
  }

  const std::string file_;
};

// Where a document starts behind another, null if none does. (YAML::LoadAll, which would know, does
// not end on some malformed texts.)
YAML::Mark SecondDocument(std::string_view yaml) {
  bool content = false;
  YAML::Mark mark;
  while (!yaml.empty()) {
    const std::string_view line = yaml.substr(0, yaml.find('\n'));
    if (line.starts_with("---")) {
      if (content) return mark;
      content = true;
    }
    content = content || (!line.empty() && line.find_first_of("#%\r") != 0);
    yaml.remove_prefix(std::min(line.size() + 1, yaml.size()));
    ++mark.line;
  }
  return YAML::Mark::null_mark();
}

void EmitMessage(const Message& message, YAML::Emitter& out) {
  const Reflection& reflection = *message.GetReflection();
  out << YAML::BeginMap;
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    out << YAML::Key << field->name() << YAML::Value;
    if (field->is_repeated()) {
      out << YAML::BeginSeq;
      for (int j = 0; j < reflection.FieldSize(message, field); ++j) {
        if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
          EmitMessage(reflection.GetRepeatedMessage(message, field, j), out);
        else
          out << reflection.GetRepeatedString(message, field, j);
      }
      out << YAML::EndSeq;
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      EmitMessage(reflection.GetMessage(message, field), out);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_UINT32) {
      out << reflection.GetUInt32(message, field);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64) {
      out << reflection.GetUInt64(message, field);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
      out << reflection.GetBool(message, field);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      out << reflection.GetDouble(message, field);
    } else {
      out << reflection.GetString(message, field);
    }
  }
  out << YAML::EndMap;
}

}  // namespace

absl::StatusOr<v1::ServerConfig> ParseConfig(std::string_view yaml, std::string_view file) {
  const YamlReader reader(file);
  v1::ServerConfig config;
  // yaml-cpp reports errors by exceptions; they end here.
  try {
    const YAML::Node root = YAML::Load(std::string(yaml));
    if (const auto second = SecondDocument(yaml); !second.is_null())
      return reader.Error(second, "a configuration has one document, and another starts");
    OSCARKV_RETURN_IF_ERROR(reader.Read(root, &config));
  } catch (const YAML::Exception& error) {
    return reader.Error(error.mark, error.msg);
  }
  return config;
}

absl::StatusOr<v1::ServerConfig> LoadConfig(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return absl::NotFoundError(absl::StrCat("the configuration ", path, " cannot be read"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return ParseConfig(text, path);
}

std::string ConfigToYaml(const v1::ServerConfig& config) {
  YAML::Emitter out;
  EmitMessage(config, out);
  return absl::StrCat(out.c_str(), "\n");
}

}  // namespace oscarkv
