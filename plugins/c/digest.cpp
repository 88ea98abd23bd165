#include "digest.h"

#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "error.h"

namespace edgelstm {
namespace {

constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t turned(uint32_t x, int n) { return x >> n | x << (32 - n); }

bool is_file(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

// Calls work(data, size) over the file, piece by piece.
template <class Work>
void read_through(const std::string& path, const Work& work) {
  File file(fopen(path.c_str(), "rb"), fclose);
  if (!file) throw Error(EDGELSTM_MODEL, "can't read " + path, "Check the path");
  std::vector<uint8_t> piece(1 << 20);
  while (size_t count = fread(piece.data(), 1, piece.size(), file.get())) work(piece.data(), count);
  if (ferror(file.get())) throw Error(EDGELSTM_MODEL, "can't read " + path);
}

std::string folder_of(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

bool ends_with_onnx(const std::string& path) {
  if (path.size() < 6) return false;
  std::string end = path.substr(path.size() - 5);
  for (char& c : end) c = c >= 'A' && c <= 'Z' ? char(c + 32) : c;
  return end == ".onnx" && path[path.size() - 6] != '/';
}

// A tensor's external_data entry "location", as protobuf writes it: the key, then the value and its length.
const char kLocation[] = "\x0a\x08location\x12";
constexpr size_t kLocationSize = sizeof(kLocation) - 1;
constexpr off_t kLargest = 0x7fffffff;     // of protobuf
constexpr size_t kLongest = (1 << 14) + 2;  // a name and its length

// Looks through the file for names of others, keeping what a name may be cut off from at a piece's end.
class Names {
 public:
  std::set<std::string> found;
  void update(const uint8_t* data, size_t size) {
    held_.append(reinterpret_cast<const char*>(data), size);
    look(false);
  }
  void finish() { look(true); }

 private:
  std::string held_;
  void look(bool last) {
    size_t from = 0;
    for (;;) {
      size_t at = held_.find(kLocation, from, kLocationSize);
      if (at == std::string::npos) {
        from = held_.size() > kLocationSize ? std::max(from, held_.size() - kLocationSize) : from;
        break;
      }
      if (!last && held_.size() - at < kLocationSize + kLongest) {
        from = at;
        break;
      }
      from = at + kLocationSize;
      if (from >= held_.size()) break;
      size_t length = uint8_t(held_[from]), start = from + 1;
      if (length & 0x80) {
        if (start < held_.size()) length = (length & 0x7f) | size_t(uint8_t(held_[start])) << 7;
        else length &= 0x7f;
        start++;
      }
      if (start < held_.size()) found.insert(held_.substr(start, length));
      from = std::min(from + 2, held_.size());  // as a search for what does not overlap
    }
    held_.erase(0, last ? held_.size() : from);
  }
};

}  // namespace

void Sha256::block(const uint8_t* data) {
  uint32_t w[64], s[8];
  for (int k = 0; k < 16; k++)
    w[k] = uint32_t(data[4 * k]) << 24 | uint32_t(data[4 * k + 1]) << 16 | uint32_t(data[4 * k + 2]) << 8 | data[4 * k + 3];
  for (int k = 16; k < 64; k++) {
    uint32_t a = turned(w[k - 15], 7) ^ turned(w[k - 15], 18) ^ w[k - 15] >> 3;
    uint32_t b = turned(w[k - 2], 17) ^ turned(w[k - 2], 19) ^ w[k - 2] >> 10;
    w[k] = w[k - 16] + a + w[k - 7] + b;
  }
  memcpy(s, state_, sizeof s);
  for (int k = 0; k < 64; k++) {
    uint32_t a = turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25);
    uint32_t first = s[7] + a + ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[k] + w[k];
    uint32_t b = turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22);
    uint32_t second = b + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += first;
    s[0] = first + second;
  }
  for (int k = 0; k < 8; k++) state_[k] += s[k];
}

void Sha256::update(const void* data, size_t size) {
  auto bytes = static_cast<const uint8_t*>(data);
  total_ += size;
  while (size != 0) {
    if (count_ == 0 && size >= 64) {
      block(bytes);
      bytes += 64, size -= 64;
      continue;
    }
    size_t part = std::min(size, 64 - count_);
    memcpy(held_ + count_, bytes, part);
    count_ += part, bytes += part, size -= part;
    if (count_ == 64) block(held_), count_ = 0;
  }
}

std::string Sha256::hex() {
  uint64_t bits = total_ * 8;
  uint8_t end[8];
  for (int k = 0; k < 8; k++) end[k] = uint8_t(bits >> (56 - 8 * k));
  uint8_t one = 0x80, zero = 0;
  update(&one, 1);
  while (count_ != 56) update(&zero, 1);
  update(end, 8);
  std::string text;
  for (uint32_t word : state_) {
    char part[9];
    snprintf(part, sizeof part, "%08x", word);
    text += part;
  }
  return text;
}

uint32_t crc32(const void* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t k = 0; k < 256; k++) {
      uint32_t c = k;
      for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
      made[k] = c;
    }
    return made;
  }();
  uint32_t c = 0xffffffff;
  auto bytes = static_cast<const uint8_t*>(data);
  for (size_t k = 0; k < size; k++) c = table[(c ^ bytes[k]) & 255] ^ c >> 8;
  return ~c;
}

std::string model_identity(const std::string& path) {
  if (!is_file(path)) {
    struct stat info;
    bool there = stat(path.c_str(), &info) == 0;
    throw Error(EDGELSTM_MODEL, there ? path + " is no file" : path + " does not exist", "Check the path");
  }
  Sha256 own;
  Names names;
  bool looked = ends_with_onnx(path);
  struct stat info;
  if (looked && stat(path.c_str(), &info) == 0 && info.st_size > kLargest)
    throw Error(EDGELSTM_MODEL, path + " has " + std::to_string(info.st_size) + " bytes; no ONNX file has more than 2 GiB",
                "Weights that are larger go into a file of their own: onnx.save_model(..., save_as_external_data=True)");
  read_through(path, [&](const uint8_t* data, size_t size) {
    own.update(data, size);
    if (looked) names.update(data, size);
  });
  names.finish();
  std::string hash = own.hex(), folder = folder_of(path);
  Sha256 together;
  together.update(hash.data(), hash.size());
  bool others = false;
  for (const std::string& name : names.found) {
    // A name that begins at the root is one for Python's paths too.
    std::string other = !name.empty() && name[0] == '/' ? name : folder + name;
    if (name.find('\0') != std::string::npos || !is_file(other)) continue;
    Sha256 digest;
    read_through(other, [&](const uint8_t* data, size_t size) { digest.update(data, size); });
    std::string text = digest.hex();
    together.update("\0", 1), together.update(name.data(), name.size()), together.update("\0", 1);
    together.update(text.data(), text.size());
    others = true;
  }
  return others ? together.hex() : hash;
}

}  // namespace edgelstm
