// A model and its one stream, behind libedgelstm: a raw frame in, a tensor or a picture out. Nothing of GStreamer is here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../c/edgelstm.h"
#include "../c/json.h"
#include "../c/signature.h"
#include "operations.h"
#include "outside.h"

namespace edgelstm_gst {

struct Settings {
  std::string model, onnxruntime, operators, output;
  uint32_t threads = 0;
  uint32_t lead = 0;   // of a forecast, from 1; 0: all
  std::string range;   // "low,high": the values of black and white; empty: chosen here
};

enum class Element { kUint8, kUint16, kFloat32 };  // of raw frames

// What comes in: frames of one form.
struct Raw {
  Shape shape;
  Element element;
  double white;  // 0: not known, no picture
};

class Model {
 public:
  explicit Model(const Settings& settings);
  Model(const Model&) = delete;

  const edgelstm::Spec& input() const { return signature_.inputs[0]; }
  const edgelstm::Spec& output() const { return signature_.outputs[output_]; }

  // As nnstreamer names it, or null where it has no such type.
  const char* tensor_type() const;
  Shape tensor_shape() const;
  size_t tensor_bytes() const;

  // Whether the output is a picture, one lead time beside the other; its channels are 1 or 3.
  bool is_picture() const { return width_ > 0; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_ * leads_; }
  int channels() const { return channels_; }

  // Whether pictures of so many channels can be made into its frames; and of which size they have to be.
  bool takes_picture(int channels) const;

  // Throws Fault where such frames can't be made into the input. `shapes`: of the first that fits.
  void prepare(const std::vector<Shape>& shapes, Element element, double white);

  // One frame. After a Fault the state is what it was. *note: what is odd about it, said once.
  void step(const void* frame, std::string* note);
  void tensor(void* to);
  // Rows of pixels, `stride` bytes apart. Once a value lies far outside the range, *outside says which.
  void picture(uint8_t* to, size_t stride, float* outside);

  void reset();
  std::string save() const;
  void load(const std::string& snapshot, const std::string& where);

 private:
  struct Close {
    void operator()(edgelstm_program* program) const { edgelstm_close(program); }
  };
  std::unique_ptr<edgelstm_program, Close> program_;
  edgelstm_stream* stream_ = nullptr;
  edgelstm::Json json_;
  edgelstm::Signature signature_;
  size_t output_ = 0;
  bool threshold_ = false;
  float least_ = 0;
  bool frame_like_ = false;
  int64_t leads_ = 1, height_ = 0, width_ = 0;
  size_t lead_ = 0;  // the first that is shown
  int channels_ = 1;
  bool channels_last_ = false, fixed_range_ = false;
  float low_ = 0, high_ = 1;
  std::vector<Transform> undo_;
  std::unique_ptr<Preprocess> preprocess_;
  Raw raw_;
  Outside outside_;
  Shape size_;
  Values frame_, shown_;
  std::vector<char> in_, out_;
  std::vector<edgelstm_output> outputs_;

  const edgelstm::Json* ops(const char* kind, const std::string& name) const;
  void choose_output(const std::string& name);
  void read_postprocessing();
  void see_picture(const Settings& settings);
  void cast();
  bool becomes_float() const { return threshold_ || output().type->element == edgelstm::kBfloat16; }  // marks; what nobody else reads
  void values(size_t first, size_t count, Values* to) const;
};

}  // namespace edgelstm_gst
