// SHA-256 (FIPS 180-4) and CRC-32 (of zip files), and which model a file is: as edgelstm/runtime/identity.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace edgelstm {

class Sha256 {
 public:
  void update(const void* data, size_t size);
  std::string hex();  // of all so far; once

 private:
  void block(const uint8_t* data);
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t held_[64];
  size_t count_ = 0;
  uint64_t total_ = 0;
};

uint32_t crc32(const void* data, size_t size);

// SHA-256 of a model's file, and of the files its weights lie in where it keeps them elsewhere. Throws Error.
std::string model_identity(const std::string& path);

}  // namespace edgelstm
