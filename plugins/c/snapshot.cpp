#include "snapshot.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "digest.h"
#include "error.h"
#include "json.h"

namespace edgelstm {
namespace {

const char kKey[] = "edgelstm.snapshot";
constexpr int kGrowthDigits = 21;  // NumPy leaves room for the first axis to grow
constexpr uint64_t kLongestHeader = 10000;  // as NumPy

[[noreturn]] void refuse(const std::string& what, const std::string& hint = "") {
  throw Error(EDGELSTM_SNAPSHOT, "snapshot: " + what, hint);
}

void put(std::string* to, uint64_t value, int bytes) {
  for (int k = 0; k < bytes; k++) *to += char(value >> (8 * k) & 255);
}

std::string npy_header(const std::string& descr, const std::vector<int64_t>& shape) {
  std::string dims;
  for (size_t k = 0; k < shape.size(); k++) dims += (k ? ", " : "") + std::to_string(shape[k]);
  if (shape.size() == 1) dims += ",";
  std::string text = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + dims + "), }";
  if (!shape.empty()) text.append(kGrowthDigits - std::to_string(shape[0]).size(), ' ');
  text.append(64 - (10 + text.size() + 1) % 64, ' ');  // 1 to 64: as NumPy
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  put(&header, text.size(), 2);
  return header + text;
}

bool ascii(const std::string& name) {
  for (char c : name)
    if (static_cast<unsigned char>(c) > 127) return false;
  return true;
}

struct Part {
  std::string name;
  uint32_t crc;
  uint64_t size, offset;
};

void add(std::string* file, std::vector<Part>* parts, const std::string& name, const std::string& content) {
  Part part{name + ".npy", crc32(content.data(), content.size()), content.size(), file->size()};
  put(file, 0x04034b50, 4), put(file, 45, 2), put(file, ascii(name) ? 0 : 0x800, 2), put(file, 0, 2);
  put(file, 0x00210000, 4), put(file, part.crc, 4), put(file, 0xffffffffffffffff, 8);
  put(file, part.name.size(), 2), put(file, 20, 2);
  *file += part.name;
  put(file, 1, 2), put(file, 16, 2), put(file, part.size, 8), put(file, part.size, 8);
  *file += content;
  parts->push_back(std::move(part));
}

void finish(std::string* file, const std::vector<Part>& parts) {
  constexpr uint64_t kLimit = 0x7fffffff;  // as Python's zipfile
  uint64_t begin = file->size();
  for (const Part& part : parts) {
    bool large = part.size > kLimit, far = part.offset > kLimit;
    std::string extra;
    if (large) put(&extra, part.size, 8), put(&extra, part.size, 8);
    if (far) put(&extra, part.offset, 8);
    size_t extra_size = extra.empty() ? 0 : extra.size() + 4;
    put(file, 0x02014b50, 4), put(file, 45, 1), put(file, 3, 1), put(file, 45, 2);
    put(file, ascii(part.name) ? 0 : 0x800, 2), put(file, 0, 2), put(file, 0x00210000, 4), put(file, part.crc, 4);
    put(file, large ? 0xffffffff : part.size, 4), put(file, large ? 0xffffffff : part.size, 4);
    put(file, part.name.size(), 2), put(file, extra_size, 2), put(file, 0, 6);
    put(file, 0600u << 16, 4), put(file, far ? 0xffffffff : part.offset, 4);
    *file += part.name;
    if (!extra.empty()) put(file, 1, 2), put(file, extra.size(), 2);
    *file += extra;
  }
  uint64_t size = file->size() - begin;
  if (begin > kLimit || size > kLimit) {
    uint64_t at = file->size();
    put(file, 0x06064b50, 4), put(file, 44, 8), put(file, 45, 2), put(file, 45, 2), put(file, 0, 8);
    put(file, parts.size(), 8), put(file, parts.size(), 8), put(file, size, 8), put(file, begin, 8);
    put(file, 0x07064b50, 4), put(file, 0, 4), put(file, at, 8), put(file, 1, 4);
  }
  put(file, 0x06054b50, 4), put(file, 0, 4), put(file, parts.size(), 2), put(file, parts.size(), 2);
  put(file, std::min<uint64_t>(size, 0xffffffff), 4), put(file, std::min<uint64_t>(begin, 0xffffffff), 4), put(file, 0, 2);
}

// Bytes that are read with an eye on where they end.
struct Bytes {
  const uint8_t* data;
  size_t size;
  uint64_t number(size_t at, int bytes) const {
    if (at > size || size - at < size_t(bytes)) refuse("cut short");
    uint64_t value = 0;
    for (int k = 0; k < bytes; k++) value |= uint64_t(data[at + k]) << (8 * k);
    return value;
  }
  Bytes part(uint64_t at, uint64_t count) const {
    if (at > size || size - at < count) refuse("cut short");
    return {data + at, size_t(count)};
  }
  std::string text() const { return std::string(reinterpret_cast<const char*>(data), size); }
};

// By name, without ".npy". The checksums are right.
std::map<std::string, Bytes> unzip(const Bytes& file) {
  if (file.size < 22) refuse("cut short", "An .npz file, as state_save and Python's snapshot().save() write it, is what is due");
  size_t end = file.size - 22, first = end > 65535 ? end - 65535 : 0;
  while (file.number(end, 4) != 0x06054b50) {
    if (end == first) refuse("cut short, or no .npz file");
    end--;
  }
  uint64_t count = file.number(end + 10, 2), size_of_all = file.number(end + 12, 4), at = file.number(end + 16, 4), limit = end;
  if (end >= 20 && file.number(end - 20, 4) == 0x07064b50) {
    uint64_t there = file.number(end - 12, 8);
    file.part(there, 56);
    if (file.number(size_t(there), 4) != 0x06064b50) refuse("a damaged directory");
    count = file.number(size_t(there) + 32, 8), size_of_all = file.number(size_t(there) + 40, 8), at = file.number(size_t(there) + 48, 8);
    limit = there;
  }
  if (at > limit || limit - at != size_of_all) refuse("a damaged directory");
  std::map<std::string, Bytes> found;
  for (uint64_t k = 0; k < count; k++) {
    Bytes entry = file.part(at, 46);
    if (entry.number(0, 4) != 0x02014b50) refuse("a damaged directory");
    uint64_t size = entry.number(24, 4), packed = entry.number(20, 4), offset = entry.number(42, 4);
    size_t name_size = entry.number(28, 2), extra_size = entry.number(30, 2);
    std::string name = file.part(at + 46, name_size).text();
    Bytes extra = file.part(at + 46 + name_size, extra_size);
    for (size_t e = 0; e + 4 <= extra.size;) {
      Bytes field = extra.part(e + 4, extra.number(e + 2, 2));
      size_t next = 0;
      auto wide = [&](uint64_t* value) {
        if (*value == 0xffffffff) *value = field.number(next, 8), next += 8;
      };
      if (extra.number(e, 2) == 1) wide(&size), wide(&packed), wide(&offset);
      e += 4 + field.size;
    }
    uint64_t flags = entry.number(8, 2);
    if (flags & 0x61 || entry.number(6, 2) > 63) refuse("an encrypted entry, or one of another kind");
    if (!(flags & 0x800) && !ascii(name)) refuse("an entry whose name is no UTF-8");
    if (entry.number(10, 2) != 0 || size != packed)
      refuse("a compressed entry, " + edgelstm::quoted(name), "Write it uncompressed: np.savez, or snapshot().save()");
    Bytes local = file.part(offset, 30);
    if (local.number(0, 4) != 0x04034b50) refuse("a damaged entry, " + edgelstm::quoted(name));
    size_t again = local.number(26, 2);
    if (file.part(offset + 30, again).text() != name) refuse("a damaged entry, " + edgelstm::quoted(name));
    Bytes content = file.part(offset + 30 + again + local.number(28, 2), size);
    if (crc32(content.data, content.size) != entry.number(16, 4)) refuse("a damaged entry, " + edgelstm::quoted(name));
    if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0) name.resize(name.size() - 4);
    if (!found.emplace(name, content).second) refuse("the entry " + edgelstm::quoted(name) + " twice");
    at += 46 + name_size + extra_size + entry.number(32, 2);
  }
  if (at != limit) refuse("a damaged directory");
  return found;
}

struct Npy {
  std::string descr;
  std::vector<int64_t> shape;
  bool fortran = false;
  Bytes content{nullptr, 0};
};

// The dictionary of an .npy file's header.
class Header {
 public:
  explicit Header(const std::string& text) : text_(text) {}
  void read(Npy* npy) {
    expect('{');
    int seen = 0;
    while (!take('}')) {
      std::string key = quoted_text();
      expect(':');
      if (key == "descr") npy->descr = quoted_text(), seen |= 1;
      else if (key == "fortran_order") npy->fortran = truth(), seen |= 2;
      else if (key == "shape") shape(npy), seen |= 4;
      else fail();
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    space();
    if (seen != 7 || at_ != text_.size()) fail();
  }

 private:
  const std::string& text_;
  size_t at_ = 0;
  [[noreturn]] void fail() { refuse("an array whose header can't be read"); }
  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) at_++;
  }
  bool take(char c) {
    space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail();
  }
  std::string quoted_text() {
    char quote = take('\'') ? '\'' : take('"') ? '"' : '\0';
    size_t end = quote ? text_.find(quote, at_) : std::string::npos;
    if (end == std::string::npos) fail();
    std::string found = text_.substr(at_, end - at_);
    at_ = end + 1;
    return found;
  }
  bool truth() {
    space();
    for (const char* word : {"False", "True"})
      if (text_.compare(at_, strlen(word), word) == 0) {
        at_ += strlen(word);
        return word[0] == 'T';
      }
    fail();
  }
  void shape(Npy* npy) {
    expect('(');
    npy->shape.clear();
    while (!take(')')) {
      space();
      int64_t size = 0;
      size_t first = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; at_++) {
        if (at_ - first > 15) fail();
        size = size * 10 + (text_[at_] - '0');
      }
      if (at_ == first || (text_[first] == '0' && at_ - first > 1)) fail();
      npy->shape.push_back(size);
      if (!take(',')) {
        expect(')');
        if (npy->shape.size() == 1) fail();  // a number in brackets
        break;
      }
    }
  }
};

Npy read_npy(const Bytes& file) {
  if (file.size < 12 || memcmp(file.data, "\x93NUMPY", 6) != 0) refuse("an entry that is no array");
  int wide = file.data[6] == 1 ? 2 : file.data[6] == 2 || file.data[6] == 3 ? 4 : 0;
  if (wide == 0 || file.data[7] != 0) refuse("an array in another format");
  uint64_t length = file.number(8, wide);
  if (length > kLongestHeader) refuse("an array whose header can't be read");
  std::string header = file.part(8 + size_t(wide), length).text();
  Npy npy;
  Header(header).read(&npy);
  size_t begin = 8 + size_t(wide) + size_t(length);
  npy.content = file.part(begin, file.size - begin);
  return npy;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t k = 0; k < shape.size(); k++) text += (k ? ", " : "") + std::to_string(shape[k]);
  return text + "]";
}

// Of the JSON that stands in the file as one NumPy text.
std::string model_of(const Bytes& file) {
  Npy npy = read_npy(file);
  if (!npy.shape.empty() || npy.content.size % 4 != 0 || npy.descr != "<U" + std::to_string(npy.content.size / 4))
    refuse("its description is no text");
  std::string text;
  for (size_t k = 0; k < npy.content.size; k += 4) {
    uint64_t c = npy.content.number(k, 4);
    if (c > 126) refuse("its description is no JSON");
    text += char(c);
  }
  while (!text.empty() && text.back() == '\0') text.pop_back();
  try {
    Json said = parse_json(text);
    if (said.at("schema").whole() != 1) refuse("another schema than 1", "Another version of edgelstm wrote it");
    return said.at("model").string();
  } catch (const std::invalid_argument&) {
    refuse("its description is no JSON");
  }
}

}  // namespace

std::string write_snapshot(const std::vector<State>& states, const std::vector<const void*>& values, const std::string& model) {
  std::string file;
  std::vector<Part> parts;
  for (size_t k = 0; k < states.size(); k++) {
    std::string content = npy_header(states[k].type->descr, states[k].shape);
    content.append(static_cast<const char*>(values[k]), states[k].bytes());
    add(&file, &parts, states[k].name, content);
  }
  std::string said = "{\"schema\": 1, \"model\": \"" + model + "\"}";
  std::string content = npy_header("<U" + std::to_string(said.size()), {});
  for (char c : said) put(&content, uint64_t(c), 4);
  add(&file, &parts, kKey, content);
  finish(&file, parts);
  return file;
}

std::vector<const void*> read_snapshot(const std::vector<State>& states, const std::string& model, const void* data, size_t size) {
  std::map<std::string, Bytes> entries = unzip({static_cast<const uint8_t*>(data), size});
  auto described = entries.find(kKey);
  if (described != entries.end()) {
    std::string other = model_of(described->second);
    if (!other.empty() && other != model)
      throw Error(EDGELSTM_OTHER_MODEL, "snapshot: of another model, " + other.substr(0, 12) + "; this one is " + model.substr(0, 12) +
                  " (SHA-256 of its file)", "Load it with the model that it was taken from");
    entries.erase(described);
  }
  if (entries.size() != states.size())
    refuse(std::to_string(entries.size()) + " states, expected " + std::to_string(states.size()), "It was taken from another model");
  std::vector<const void*> found;
  for (const State& state : states) {
    auto entry = entries.find(state.name);
    if (entry == entries.end()) refuse("no state " + edgelstm::quoted(state.name), "It was taken from another model");
    Npy npy = read_npy(entry->second);
    if (npy.descr != state.type->descr || npy.shape != state.shape)
      refuse("state " + edgelstm::quoted(state.name) + " is " + npy.descr + shape_text(npy.shape) + ", expected " + state.text(),
             "It was taken from another model, or from one that keeps its states in another type");
    if (npy.fortran && npy.shape.size() > 1) refuse("state " + edgelstm::quoted(state.name) + " in Fortran's order", "Write it in C order");
    if (npy.content.size != state.bytes()) refuse("state " + edgelstm::quoted(state.name) + " is cut short");
    auto odd = [](uint8_t byte) { return byte > 1; };
    if (state.type->element == kBool && std::any_of(npy.content.data, npy.content.data + npy.content.size, odd))
      refuse("state " + edgelstm::quoted(state.name) + " holds what is neither true nor false");
    found.push_back(npy.content.data);
  }
  return found;
}

}  // namespace edgelstm
