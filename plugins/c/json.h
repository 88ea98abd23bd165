// JSON as far as a Signature needs it: objects, arrays, text, whole numbers; other numbers stay text.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace edgelstm {

struct Json {
  enum class Kind { kNull, kTrue, kFalse, kInteger, kReal, kText, kArray, kObject };
  Kind kind = Kind::kNull;
  int64_t integer = 0;
  std::string text;  // of a number: as it is written
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // of a name given twice the last one counts

  // The member of an object; null if there is none.
  const Json* find(const std::string& name) const;
  // Those of the kinds named; std::invalid_argument says what was there.
  const Json& at(const std::string& name) const;
  int64_t whole() const;
  const std::string& string() const;
  const std::vector<Json>& array() const;
  bool truth(const std::string& name) const;  // of a member that may be missing
};

// std::invalid_argument for what is no JSON.
Json parse_json(const std::string& text);

// As Python's json.dumps(value, sort_keys=True) writes what json.dumps wrote.
std::string dump_sorted(const Json& value);

// Standard base64, padded; std::invalid_argument for anything else.
std::string decode_base64(const std::string& text);

}  // namespace edgelstm
