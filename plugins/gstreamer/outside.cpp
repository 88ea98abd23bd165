#include "outside.h"

#include <algorithm>
#include <cmath>

namespace edgelstm_gst {
namespace {

constexpr int kLooks = 32, kTinyLooks = 64;
constexpr size_t kSamples = 1 << 14;
constexpr float kFar = 3.0f, kTiny = 0.01f, kSound = 1.5f;

std::string ends(float low, float high) {
  char text[64];
  snprintf(text, sizeof text, "%.4g to %.4g", double(low), double(high));
  return text;
}

}  // namespace

Outside::Outside(const edgelstm::Json* range, const std::string& input) : input_(input) {
  if (range == nullptr || range->kind != edgelstm::Json::Kind::kArray || range->items.size() != 2) return;
  low_ = float(number_of(range->items[0])), high_ = float(number_of(range->items[1]));
  done_ = !(high_ > low_);
  bool sound = low_ < 0 && high_ > 0 && std::max(-low_, high_) <= kSound;
  watch_tiny_ = !sound;
  tiny_ = kTiny * std::max(std::fabs(low_), std::fabs(high_));
  least_ = INFINITY, most_ = -INFINITY;
}

std::string Outside::look(const Values& frame) {
  if (done_ || frame.empty()) return "";
  looks_++;
  float least = frame[0], most = frame[0];
  for (size_t k = 0, step = std::max<size_t>(1, frame.size() / kSamples); k < frame.size(); k += step) least = std::min(least, frame[k]), most = std::max(most, frame[k]);
  least_ = std::min(least_, least), most_ = std::max(most_, most);
  if (std::max(-least, most) > tiny_) watch_tiny_ = false;
  float width = kFar * (high_ - low_);
  std::string seen = ", where " + ends(low_, high_) + " was seen. Is a scale missing in its preprocessing (export --preprocess 'scale=...')";
  if (most > high_ + width || least < low_ - width) {
    done_ = true;
    return "frames of input '" + input_ + "' lie far outside what the model was made with: " + ends(least, most) + seen + "?";
  }
  if (looks_ >= kLooks && !watch_tiny_) done_ = true;
  if (looks_ < kTinyLooks || done_) return "";
  done_ = true;
  if (!(least_ < most_)) return "";  // what never changes says nothing
  return "frames of input '" + input_ + "' fill next to nothing of what the model was made with: " + ends(least_, most_) + " in the first " + std::to_string(kTinyLooks) + seen + ", or one too much?";
}

}  // namespace edgelstm_gst
