#include "signature.h"

#include <set>
#include <stdexcept>

#include "error.h"
#include "json.h"

namespace edgelstm {
namespace {

constexpr int64_t kMostElements = (int64_t{1} << 31) - 1;

const Type kTypes[] = {
    {"float32", kFloat32, 4, "<f4"}, {"float16", kFloat16, 2, "<f2"}, {"bfloat16", kBfloat16, 2, "<u2"}, {"float8e4m3fn", kFloat8, 1, "|u1"},
    {"float64", kFloat64, 8, "<f8"}, {"int64", kInt64, 8, "<i8"}, {"int32", kInt32, 4, "<i4"}, {"int16", kInt16, 2, "<i2"},
    {"int8", kInt8, 1, "|i1"}, {"uint8", kUint8, 1, "|u1"}, {"bool", kBool, 1, "|b1"},
};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

const std::string& named(const Json& item, const char* member) {
  const std::string& name = item.at(member).string();
  if (name.empty() || name.find('\0') != std::string::npos) refuse(std::string("a ") + member + " that is no name");
  return name;
}

// The stream axis as text, which has to be the same for all tensors.
std::string read_spec(const Json& item, Spec* spec) {
  spec->name = named(item, "name");
  spec->type = &type_of(item.at("dtype").string());
  const std::vector<Json>& shape = item.at("shape").array();
  if (shape.empty()) refuse(spec->name + " without a stream axis");
  for (size_t k = 1; k < shape.size(); k++) {
    int64_t size = shape[k].whole();
    if (size < 1 || size > kMostElements || spec->count > kMostElements / size) refuse("the shape of " + spec->name);
    spec->shape.push_back(size);
    spec->count *= size;
  }
  if (shape[0].kind == Json::Kind::kText && !shape[0].text.empty()) return "name " + shape[0].text;
  int64_t rows = shape[0].whole();
  if (rows < 1 || rows > kMostElements) refuse("the stream axis of " + spec->name);
  return std::to_string(rows);
}

std::string read_initial(const Json* initial, const State& state) {
  if (initial == nullptr || (initial->kind == Json::Kind::kText && initial->text == "zeros")) return "";
  std::string value;
  if (const Json* repeated = initial->find("repeated")) {
    std::string one = decode_base64(repeated->string());
    if (one.size() != state.type->size) refuse("the initial value of " + state.name);
    value.reserve(state.bytes());
    for (int64_t k = 0; k < state.count; k++) value += one;
  } else {
    value = decode_base64(initial->at("base64").string());
  }
  if (value.size() != state.bytes()) refuse("the initial value of " + state.name);
  return value;
}

Signature read(const Json& json) {
  if (json.kind != Json::Kind::kObject) refuse("no object");
  const Json* schema = json.find("schema");
  if (schema == nullptr || schema->kind != Json::Kind::kInteger || schema->integer != 1)
    refuse("another schema than 1: a newer edgelstm may have written it");
  Signature found;
  std::set<std::string> axes, taken, given, made, names;
  auto one = [](std::set<std::string>* all, const std::string& name, const char* kind) {
    if (!all->insert(name).second) refuse(std::string(kind) + " " + name + " twice");
  };
  for (const Json& item : json.at("inputs").array()) {
    axes.insert(read_spec(item, &found.inputs.emplace_back()));
    one(&taken, found.inputs.back().name, "input");
  }
  for (const Json& item : json.at("outputs").array()) {
    axes.insert(read_spec(item, &found.outputs.emplace_back()));
    one(&given, found.outputs.back().name, "output");
  }
  for (const Json& item : json.at("states").array()) {
    State& state = found.states.emplace_back();
    axes.insert(read_spec(item, &state));
    if (state.name == "edgelstm.snapshot") refuse("a state called " + state.name + ", under which snapshots say of which model they are");
    state.input = named(item, "input"), state.output = named(item, "output");
    state.initial = read_initial(item.find("initial"), state);
    one(&names, state.name, "state"), one(&taken, state.input, "input"), one(&made, state.output, "state output");
  }
  if (found.inputs.empty() || (found.outputs.empty() && found.states.empty())) refuse("no inputs, or nothing that comes out");
  made.insert(given.begin(), given.end());
  for (const std::string& name : made)
    if (taken.count(name)) refuse(name + " is an input and an output");
  if (axes.size() != 1) refuse("tensors with different stream axes");
  if (axes.begin()->compare(0, 5, "name ") != 0) found.rows = std::stoll(*axes.begin());
  return found;
}

}  // namespace

const Type& type_of(const std::string& name) {
  for (const Type& type : kTypes)
    if (name == type.name) return type;
  refuse("an unknown dtype, " + name);
}

const char* name_of(int element) {
  for (const Type& type : kTypes)
    if (element == type.element) return type.name;
  return nullptr;
}

std::string Spec::text() const {
  std::string text = std::string(type->name) + "[";
  for (size_t k = 0; k < shape.size(); k++) text += (k ? ", " : "") + std::to_string(shape[k]);
  return text + "]";
}

Signature parse_signature(const std::string& json, const std::string& where) {
  try {
    return read(parse_json(json));
  } catch (const std::invalid_argument& error) {
    throw Error(EDGELSTM_MODEL, where + ": Signature: " + error.what(), "The file was edited, or is of another version: export the model again");
  }
}

}  // namespace edgelstm
