// Frames that lie far outside what a model was exported or calibrated with, or fill next to nothing of it, seen in the first ones: as
// edgelstm/runtime/outside.py, of one input.
#pragma once

#include <string>

#include "operations.h"

namespace edgelstm_gst {

class Outside {
 public:
  Outside() = default;  // nothing is known
  // `range`: [low, high] of the Signature, or null.
  Outside(const edgelstm::Json* range, const std::string& input);

  // What to say of a frame as the model takes it, once; else empty.
  std::string look(const Values& frame);

 private:
  bool done_ = true, watch_tiny_ = false;
  std::string input_;
  float low_ = 0, high_ = 0, tiny_ = 0, least_ = 0, most_ = 0;
  int looks_ = 0;
};

}  // namespace edgelstm_gst
