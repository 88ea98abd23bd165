#include "json.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

namespace edgelstm {
namespace {

using Kind = Json::Kind;
constexpr int kDeepest = 64;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

class Reader {
 public:
  explicit Reader(const std::string& text) : now_(text.data()), begin_(now_), end_(now_ + text.size()) {}

  Json document() {
    Json value = read(0);
    space();
    if (now_ != end_) fail("more behind the end");
    return value;
  }

 private:
  const char* now_;
  const char* begin_;
  const char* end_;

  [[noreturn]] void fail(const std::string& what) { refuse(what + " at byte " + std::to_string(now_ - begin_)); }
  void space() {
    while (now_ != end_ && (*now_ == ' ' || *now_ == '\t' || *now_ == '\n' || *now_ == '\r')) ++now_;
  }
  char peek() {
    space();
    if (now_ == end_) fail("the end");
    return *now_;
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++now_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("no ") + c);
  }
  bool word(const char* text) {
    size_t size = strlen(text);
    if (size_t(end_ - now_) < size || memcmp(now_, text, size) != 0) return false;
    now_ += size;
    return true;
  }

  Json read(int depth) {
    if (depth > kDeepest) fail("nested too deep");
    Json value;
    char c = peek();
    if (c == '{') {
      ++now_, value.kind = Kind::kObject;
      if (take('}')) return value;
      do {
        if (peek() != '"') fail("no name");
        std::string name = text();
        expect(':');
        value.members.emplace_back(std::move(name), read(depth + 1));
      } while (take(','));
      expect('}');
    } else if (c == '[') {
      ++now_, value.kind = Kind::kArray;
      if (take(']')) return value;
      do value.items.push_back(read(depth + 1));
      while (take(','));
      expect(']');
    } else if (c == '"') {
      value.kind = Kind::kText, value.text = text();
    } else if (word("true")) {
      value.kind = Kind::kTrue;
    } else if (word("false")) {
      value.kind = Kind::kFalse;
    } else if (!word("null")) {
      number(&value);
    }
    return value;
  }

  bool digit() const { return now_ != end_ && *now_ >= '0' && *now_ <= '9'; }
  void digits() {
    if (!digit()) fail("no digit");
    while (digit()) ++now_;
  }
  void number(Json* value) {
    const char* start = now_;
    if (now_ != end_ && *now_ == '-') ++now_;
    const char* first = now_;
    digits();
    if (*first == '0' && now_ - first > 1) fail("a number that begins with 0");
    value->kind = Kind::kInteger;
    if (now_ != end_ && *now_ == '.') ++now_, digits(), value->kind = Kind::kReal;
    if (now_ != end_ && (*now_ == 'e' || *now_ == 'E')) {
      ++now_, value->kind = Kind::kReal;
      if (now_ != end_ && (*now_ == '+' || *now_ == '-')) ++now_;
      digits();
    }
    value->text.assign(start, now_);
    if (value->kind != Kind::kInteger) return;
    if (now_ - start > 18) {  // more than fits for sure: no size, no index
      value->kind = Kind::kReal;
      return;
    }
    value->integer = std::stoll(std::string(start, now_));
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int k = 0; k < 4; k++, ++now_) {
      char c = now_ == end_ ? '\0' : *now_;
      uint32_t digit = c >= '0' && c <= '9' ? uint32_t(c - '0') : c >= 'a' && c <= 'f' ? uint32_t(c - 'a' + 10)
                       : c >= 'A' && c <= 'F' ? uint32_t(c - 'A' + 10) : 16u;
      if (digit > 15) fail("no hexadecimal digit");
      code = code * 16 + digit;
    }
    return code;
  }
  static void append(uint32_t code, std::string* to) {
    if (code < 0x80) {
      *to += char(code);
    } else if (code < 0x800) {
      *to += char(0xc0 | code >> 6), *to += char(0x80 | (code & 63));
    } else if (code < 0x10000) {
      *to += char(0xe0 | code >> 12), *to += char(0x80 | (code >> 6 & 63)), *to += char(0x80 | (code & 63));
    } else {
      *to += char(0xf0 | code >> 18), *to += char(0x80 | (code >> 12 & 63)), *to += char(0x80 | (code >> 6 & 63));
      *to += char(0x80 | (code & 63));
    }
  }
  // Bytes of the UTF-8 character that begins here.
  size_t character() {
    auto byte = [&](size_t k) { return size_t(end_ - now_) > k ? static_cast<unsigned char>(now_[k]) : 0u; };
    unsigned first = byte(0), second = byte(1);
    size_t size = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
    bool good = size != 0 && !(first == 0xe0 && second < 0xa0) && !(first == 0xed && second > 0x9f) && !(first == 0xf0 && second < 0x90) &&
                !(first == 0xf4 && second > 0x8f);
    for (size_t k = 1; k < size; k++) good = good && (byte(k) & 0xc0) == 0x80;
    if (!good) fail("no UTF-8");
    return size;
  }
  std::string text() {
    std::string found;
    for (++now_;; ++now_) {
      if (now_ == end_ || static_cast<unsigned char>(*now_) < 0x20) fail("text without an end");
      if (*now_ == '"') break;
      if (*now_ != '\\') {
        size_t size = character();
        found.append(now_, size);
        now_ += size - 1;
        continue;
      }
      if (++now_ == end_) fail("text without an end");
      static const char kShort[] = "\"\\/bfnrt";
      static const char kMeant[] = "\"\\/\b\f\n\r\t";
      if (*now_ == 'u') {
        ++now_;
        uint32_t code = hex();
        if (code >= 0xd800 && code < 0xdc00 && word("\\u")) {
          uint32_t low = hex();
          if (low < 0xdc00 || low > 0xdfff) fail("half a character");
          code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xd800 && code < 0xe000) {
          fail("half a character");
        }
        append(code, &found);
        --now_;
      } else if (const char* at = strchr(kShort, *now_); at != nullptr && *at != '\0') {
        found += kMeant[at - kShort];
      } else {
        fail("an unknown escape");
      }
    }
    ++now_;
    return found;
  }
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  if (kind != Kind::kObject) refuse("no object where " + name + " was looked for");
  for (auto at = members.rbegin(); at != members.rend(); ++at)
    if (at->first == name) return &at->second;
  return nullptr;
}

const Json& Json::at(const std::string& name) const {
  const Json* found = find(name);
  if (found == nullptr) refuse("no " + name);
  return *found;
}

int64_t Json::whole() const {
  if (kind != Kind::kInteger) refuse("no whole number where one is due");
  return integer;
}

const std::string& Json::string() const {
  if (kind != Kind::kText) refuse("no text where some is due");
  return text;
}

const std::vector<Json>& Json::array() const {
  if (kind != Kind::kArray) refuse("no list where one is due");
  return items;
}

bool Json::truth(const std::string& name) const {
  const Json* found = find(name);
  return found != nullptr && found->kind == Kind::kTrue;
}

namespace {

void quote(const std::string& text, std::string* to) {
  static const char kShort[] = "\"\\\b\f\n\r\t";
  static const char kMeant[] = "\"\\bfnrt";
  auto unit = [&](uint32_t code) {
    char part[8];
    snprintf(part, sizeof part, "\\u%04x", code);
    *to += part;
  };
  *to += '"';
  for (size_t k = 0; k < text.size();) {
    auto c = static_cast<unsigned char>(text[k]);
    if (const char* at = c == 0 ? nullptr : strchr(kShort, c); at != nullptr) {
      *to += '\\', *to += kMeant[at - kShort], k++;
    } else if (c >= 0x20 && c < 0x7f) {
      *to += char(c), k++;
    } else if (c < 0x80) {
      unit(c), k++;
    } else {
      int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
      uint32_t code = c & (0x3f >> more);
      for (k++; more-- > 0 && k < text.size(); k++) code = code << 6 | (static_cast<unsigned char>(text[k]) & 0x3f);
      if (code < 0x10000) unit(code);
      else unit(0xd800 + ((code - 0x10000) >> 10)), unit(0xdc00 + ((code - 0x10000) & 0x3ff));
    }
  }
  *to += '"';
}

void dump(const Json& value, std::string* to) {
  switch (value.kind) {
    case Kind::kNull: *to += "null"; break;
    case Kind::kTrue: *to += "true"; break;
    case Kind::kFalse: *to += "false"; break;
    case Kind::kInteger:
    case Kind::kReal: *to += value.text; break;
    case Kind::kText: quote(value.text, to); break;
    case Kind::kArray:
      *to += '[';
      for (size_t k = 0; k < value.items.size(); k++) *to += k ? ", " : "", dump(value.items[k], to);
      *to += ']';
      break;
    case Kind::kObject: {
      std::map<std::string, const Json*> sorted;  // by UTF-8, which is in the order of code points as Python's
      for (const auto& member : value.members) sorted[member.first] = &member.second;
      *to += '{';
      bool first = true;
      for (const auto& member : sorted) {
        if (!first) *to += ", ";
        first = false;
        quote(member.first, to), *to += ": ", dump(*member.second, to);
      }
      *to += '}';
    }
  }
}

}  // namespace

std::string dump_sorted(const Json& value) {
  std::string text;
  dump(value, &text);
  return text;
}

Json parse_json(const std::string& text) { return Reader(text).document(); }

std::string decode_base64(const std::string& text) {
  if (text.size() % 4 != 0) refuse("base64 cut short");
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') padding++;
  std::string found;
  found.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  for (size_t k = 0; k < text.size(); k++) {
    char c = text[k];
    uint32_t value = c >= 'A' && c <= 'Z' ? uint32_t(c - 'A') : c >= 'a' && c <= 'z' ? uint32_t(c - 'a' + 26)
                     : c >= '0' && c <= '9' ? uint32_t(c - '0' + 52) : c == '+' ? 62u : c == '/' ? 63u : 64u;
    if (value == 64 && k >= text.size() - padding) value = 0;
    if (value == 64) refuse("base64 with other characters");
    bits = bits << 6 | value;
    if (k % 4 == 3) {
      found += char(bits >> 16 & 255), found += char(bits >> 8 & 255), found += char(bits & 255);
      bits = 0;
    }
  }
  found.resize(found.size() - padding);
  return found;
}

}  // namespace edgelstm
