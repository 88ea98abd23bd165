// Whether one thread or all of them are to compute a step.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>

namespace edgelstm {

// Whether the next step is divided, by how long steps took. What counts is the time that two thirds of the last steps kept to: a thread
// that others stop for milliseconds now and then, or a first step with cold caches, says little of the next one; a mean would be made
// of these alone. The other way is tried for a few steps in a row: soon at first, or where steps become clearly slower than they were
// when it was last compared; else later and later as long as it is clearly the slower one, since trying it is slow steps.
class Choice {
 public:
  // For a step of so many rows. Others may be on their way.
  bool divide(int64_t rows) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return divided_.load(std::memory_order_relaxed);
    if (rows != rows_) {  // another amount of work: nothing is known of it
      rows_ = rows, known_ = 0, at_ = 0, probe_ = 0, turn_ = 0, compared_ = 0;
      passed_ = 2, period_ = kFirst;
      divided_.store(true, std::memory_order_relaxed);
    }
    return divided_.load(std::memory_order_relaxed) != (probe_ > 0);
  }

  // How long it took, in microseconds.
  void took(int64_t rows, bool divided, float time) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    bool now = divided_.load(std::memory_order_relaxed);
    if (!lock.owns_lock() || rows != rows_ || divided != (now != (probe_ > 0))) return;
    if (probe_ == 0) {
      if (passed_ > 0) {
        passed_--;
        return;
      }
      recent_[at_] = time, at_ = (at_ + 1) % kRecent;
      known_ = std::min(known_ + 1, kRecent);
      turn_++;
      bool slower = compared_ != 0 && known_ >= kShortest && turn_ >= kShortest && turn_ % 8 == 0 && usual() > kClearly * compared_;
      if (turn_ >= period_ || slower) probe_ = 1;
      return;
    }
    // The first of a probe finds the weights in another core's cache.
    if (probe_ > 1) tried_[probe_ - 2] = time;
    if (++probe_ <= kTried + 1) return;
    probe_ = 0, turn_ = 0, passed_ = 1;
    std::sort(tried_, tried_ + kTried);
    float before = usual(), other = tried_[kTried / 2];
    compared_ = std::min(before, other);
    // A thread that does not run leaves a divided step as long as one alone, and comes back sooner than it would be looked for.
    if (other < (now ? kLess * before : before)) {
      divided_.store(!now, std::memory_order_relaxed);
      std::copy(tried_, tried_ + kTried, recent_);
      known_ = at_ = kTried, passed_ = 0, period_ = kShortest;
    } else {
      period_ = other < kClearly * before ? kShortest : std::min(std::max(2 * period_, 2 * kShortest), kLongest);
    }
  }

 private:
  static constexpr int kFirst = 9, kRecent = 60, kTried = 3, kShortest = 32, kLongest = 4096;
  static constexpr float kClearly = 1.25f, kLess = 0.9f;

  // What two thirds of the last steps kept to.
  float usual() const {
    float sorted[kRecent];
    std::copy(recent_, recent_ + known_, sorted);
    int place = (2 * known_ + 2) / 3 - 1;
    std::nth_element(sorted, sorted + place, sorted + known_);
    return sorted[place];
  }

  std::mutex mutex_;
  std::atomic<bool> divided_{true};  // what is better, as far as is known
  int64_t rows_ = -1;
  int known_ = 0, at_ = 0, probe_ = 0, passed_ = 0, turn_ = 0, period_ = 0;
  float compared_ = 0;  // how long the better way took when both were compared
  float recent_[kRecent] = {}, tried_[kTried] = {};
};

}  // namespace edgelstm
