#include "statefile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "fault.h"

namespace edgelstm_gst {
namespace {

[[noreturn]] void fail(Kind kind, const std::string& path, const std::string& what) {
  throw Fault(kind, "state-file " + path, what, "", kind == Kind::kRead ? "Move it away to begin at the model's initial state" : "Name a file in a folder that can be written");
}

}  // namespace

bool read_state(const std::string& path, size_t most, std::string* bytes) {
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0 && errno == ENOENT) return false;
  if (file < 0) fail(Kind::kRead, path, strerror(errno));
  struct stat info;
  std::string trouble;
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) trouble = "no file";
  else if (uint64_t(info.st_size) > most) trouble = std::to_string(info.st_size) + " bytes, more than a state of this model has";
  bytes->assign(trouble.empty() ? size_t(info.st_size) : 0, '\0');
  for (size_t place = 0; trouble.empty() && place < bytes->size();) {
    ssize_t got = read(file, &(*bytes)[place], bytes->size() - place);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) trouble = got < 0 ? strerror(errno) : "a file that is being changed";
    else place += size_t(got);
  }
  close(file);
  if (!trouble.empty()) fail(Kind::kRead, path, trouble);
  return true;
}

double state_age(const std::string& path) {
  struct stat info;
  struct timespec now;
  if (stat(path.c_str(), &info) != 0 || clock_gettime(CLOCK_REALTIME, &now) != 0) return NAN;
  return double(now.tv_sec - info.st_mtim.tv_sec) + 1e-9 * double(now.tv_nsec - info.st_mtim.tv_nsec);
}

void write_state(const std::string& path, const std::string& bytes) {
  std::string beside = path + ".XXXXXX";
  int file = mkstemp(&beside[0]);
  if (file < 0) fail(Kind::kWrite, path, strerror(errno));
  std::string trouble;
  for (size_t place = 0; trouble.empty() && place < bytes.size();) {
    ssize_t put = write(file, bytes.data() + place, bytes.size() - place);
    if (put < 0 && errno != EINTR) trouble = strerror(errno);
    if (put > 0) place += size_t(put);
  }
  struct stat before;
  mode_t mode = stat(path.c_str(), &before) == 0 ? before.st_mode & 0777 : 0644;
  if (trouble.empty() && (fchmod(file, mode) != 0 || fsync(file) != 0)) trouble = strerror(errno);
  if (close(file) != 0 && trouble.empty()) trouble = strerror(errno);
  if (trouble.empty() && rename(beside.c_str(), path.c_str()) != 0) trouble = strerror(errno);
  if (trouble.empty()) return;
  unlink(beside.c_str());
  fail(Kind::kWrite, path, trouble);
}

}  // namespace edgelstm_gst
