// From a raw frame to what the model takes, by the preprocessing in its Signature: as edgelstm/pipeline/operations.py, in float32
// and in the same order, so that the numbers have the same bits (`grey` and `log1p` may differ in the last ones).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../c/json.h"
#include "fault.h"

namespace edgelstm_gst {

using Values = std::vector<float>;
using Transform = std::function<void(Values* frame)>;

struct Layout {
  Shape shape;
  int channel = -1;  // which axis; -1: none
};

// Of a raw frame: three axes have their channels last when `channels_last` says so or the last one has at most four entries.
Layout raw_layout(const Shape& shape, bool channels_last);

// The preprocessing of one input for frames of one shape.
class Preprocess {
 public:
  // `ops`: null for none. Throws Fault where operations are unknown, don't fit the shape, or lead to another than `want`.
  Preprocess(const edgelstm::Json* ops, const std::string& input, const Shape& raw, const Shape& want);
  void operator()(Values* frame) const {
    for (const Transform& transform : transforms_) transform(frame);
  }

 private:
  std::vector<Transform> transforms_;
};

// A size of pictures that `ops` make frames of `want` of; 0 for both where there is none.
struct Size {
  int64_t height, width;
};
Size raw_size(const edgelstm::Json* ops, const Shape& want);

// Throws where a declared scale brings another depth than that of `white` to 1.
void check_depth(const edgelstm::Json* ops, const std::string& input, double white);

// Whether what makes pictures smaller comes first: then their size may change while they come.
bool any_size(const edgelstm::Json* ops);

// The way back to the units of the source. False, and `undo` stays, where there is none.
bool inverse(const edgelstm::Json* ops, std::vector<Transform>* undo);

// A number of an operation, as written in JSON.
double number_of(const edgelstm::Json& value);

}  // namespace edgelstm_gst
