#include "sidecar.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "digest.h"
#include "error.h"

namespace edgelstm {
namespace {

constexpr int64_t kLargest = int64_t{64} << 20;
const char kAgain[] = "Copy both files of the engine again, or build it again: edgelstm build-engine";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> found;
  for (const Json& item : list.array()) found.push_back(item.string());
  return found;
}

std::array<int, 3> rows(const Json& list) {
  std::array<int, 3> found{};
  if (list.array().size() != 3) refuse("streams that are not three numbers");
  for (size_t k = 0; k < 3; k++) {
    int64_t one = list.items[k].whole();
    if (one < (k ? found[k - 1] : 1) || one > 1 << 24) refuse("streams");
    found[k] = int(one);
  }
  return found;
}

Json* member(Json* object, const char* name) {
  for (auto one = object->members.rbegin(); one != object->members.rend(); ++one)  // the last one counts
    if (one->first == name) return &one->second;
  refuse(std::string("no ") + name);
}

void remove(Json* object, const char* name) {
  auto& all = object->members;
  all.erase(std::remove_if(all.begin(), all.end(), [&](const auto& one) { return one.first == name; }), all.end());
}

Sidecar read(Json json) {
  if (json.kind != Json::Kind::kObject) refuse("no object");
  if (json.at("schema").whole() != 1) refuse("another schema than 1: a newer edgelstm may have written it");
  Sidecar found;
  found.signature = dump_sorted(json.at("signature"));
  found.runtime = json.at("runtime").string(), found.version = json.at("version").string(), found.gates = json.at("gates").string();
  if (json.at("gpu").kind == Json::Kind::kText) found.gpu = json.at("gpu").text;
  found.targets = texts(json.at("targets")), found.precision = texts(json.at("precision"));
  found.streams = rows(json.at("streams"));
  found.plan_bytes = json.at("plan_bytes").whole();
  const Json& options = json.at("options");
  if (const Json* profiles = options.find("profiles"); profiles != nullptr && profiles->kind == Json::Kind::kArray)
    for (const Json& one : profiles->items) found.profiles.push_back(rows(one));
  if (found.profiles.empty()) found.profiles.push_back(found.streams);
  found.version_compatible = options.truth("version_compatible"), found.hardware_compatible = options.truth("hardware_compatible");
  const Json* in_place = options.find("in_place");
  found.in_place = in_place == nullptr || in_place->kind != Json::Kind::kFalse;
  // The name is a hash of all but what is only known of a built plan: as Sidecar.engine_name.
  remove(&json, "plan_bytes");
  remove(member(&json, "hashes"), "plan");
  std::string content = dump_sorted(json);
  Sha256 digest;
  digest.update(content.data(), content.size());
  found.engine_name = "edgelstm-" + digest.hex().substr(0, 32);
  return found;
}

}  // namespace

Sidecar parse_sidecar(const std::string& text, const std::string& where) {
  try {
    return read(parse_json(text));
  } catch (const std::invalid_argument& error) {
    throw Error(EDGELSTM_MODEL, where + ": " + error.what(), "The file was edited, or is of another version: build the engine again");
  }
}

Sidecar load_sidecar(const std::string& plan) {
  std::string path = plan + ".json";
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
    throw Error(EDGELSTM_MODEL, plan + " has no sidecar, " + path + ": nothing tells its states, or which TensorRT and GPU it was built for", kAgain);
  if (info.st_size > kLargest) throw Error(EDGELSTM_MODEL, path + " is too large", kAgain);
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  Sidecar found = parse_sidecar(text, path);
  if (stat(plan.c_str(), &info) != 0 || info.st_size != found.plan_bytes)
    throw Error(EDGELSTM_MODEL, plan + " is not the plan that its sidecar tells of: it has " + std::to_string(info.st_size) + " bytes, expected " +
                std::to_string(found.plan_bytes), kAgain);
  return found;
}

}  // namespace edgelstm
