#include "model.h"

#include <glib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../c/error.h"
#include "numbers.h"

namespace edgelstm_gst {
namespace {

using edgelstm::Json;
using edgelstm::Spec;

Kind kind_of(int code) {
  if (code == EDGELSTM_LIBRARY || code == EDGELSTM_ABI) return Kind::kLibrary;
  if (code == EDGELSTM_SNAPSHOT || code == EDGELSTM_OTHER_MODEL) return Kind::kRead;
  return code == EDGELSTM_MODEL || code == EDGELSTM_INVALID ? Kind::kModel : Kind::kRun;
}

void check(int code, const edgelstm_error& error, const std::string& before = "") {
  if (code == EDGELSTM_OK) return;
  throw Fault(kind_of(code), before + error.what, "", "", error.hint);
}

// Grey or RGB behind height and width, as Keras has it.
bool has_channels_last(const Shape& shape) { return shape.size() == 3 && (shape[2] == 1 || shape[2] == 3) && shape[0] > 4; }

template <class T>
T saturated(float value) {
  double rounded = std::rint(double(value)), low = double(std::numeric_limits<T>::min()), high = double(std::numeric_limits<T>::max());
  return T(std::min(std::max(rounded, low), high));
}

// The bits of a value in a shorter type, of which those of the exponent are all set in infinity alone.
uint16_t checked(const Spec& spec, float value, uint16_t bits, uint16_t exponent) {
  if ((bits & exponent) != exponent) return bits;
  throw Fault(Kind::kFrames, "a frame for input '" + spec.name + "'", std::to_string(value), std::string("numbers of ") + spec.type->name, "The state has not moved");
}

template <class T, class Convert>
void cast_all(const Values& from, std::vector<char>* to, const Convert& convert) {
  for (size_t k = 0; k < from.size(); k++) {
    T value = convert(from[k]);
    memcpy(to->data() + k * sizeof(T), &value, sizeof(T));
  }
}

template <class T>
float as_float(T value) { return float(value); }

template <class T>
void read_all(const char* data, Values* to, float (*convert)(T) = as_float<T>) {
  for (size_t k = 0; k < to->size(); k++) {
    T value;
    memcpy(&value, data + k * sizeof(T), sizeof(T));
    (*to)[k] = convert(value);
  }
}

}  // namespace

Model::Model(const Settings& settings) {
  if (settings.model.empty())
    throw Fault(Kind::kSettings, "model", "no file", "a step graph, an .onnx file as `edgelstm export` writes it", "edgelstm model=FILE.onnx");
  edgelstm_error error;
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.threads = settings.threads;
  options.no_spin = 1;  // the processor is other elements' too
  if (!settings.onnxruntime.empty()) options.onnxruntime = settings.onnxruntime.c_str();
  if (!settings.operators.empty()) options.operators = settings.operators.c_str();
  edgelstm_program* program = nullptr;
  int code = edgelstm_open(settings.model.c_str(), &options, &program, &error);
  if (code == EDGELSTM_INVALID) throw Fault(Kind::kModel, error.what, "", "", "The element steps one stream: export the model with any number of them");
  check(code, error);
  program_.reset(program);
  check(edgelstm_stream_new(program, &stream_, &error), error);
  try {
    json_ = edgelstm::parse_json(edgelstm_signature_json(program));
  } catch (const std::invalid_argument& damaged) {
    throw Fault(Kind::kModel, settings.model + ": Signature: " + damaged.what());
  }
  try {
    signature_ = edgelstm::parse_signature(edgelstm_signature_json(program), settings.model);
  } catch (const edgelstm::Error& damaged) {
    throw Fault(Kind::kModel, damaged.what(), "", "", damaged.hint);
  }
  if (signature_.inputs.size() != 1)
    throw Fault(Kind::kModel, settings.model, std::to_string(signature_.inputs.size()) + " inputs", "one: the element has one sink pad");
  const Json* window = json_.find("window");
  if (window != nullptr && window->kind != Json::Kind::kNull)
    throw Fault(Kind::kModel, settings.model, "a window of several frames", "a step graph, which takes one frame at a time", "Export it without --window");
  edgelstm::ElementType type = input().type->element;
  if (type == edgelstm::kBool || type == edgelstm::kInt64 || type == edgelstm::kFloat8)
    throw Fault(Kind::kModel, "input '" + input().name + "'", input().type->name, "float32, float16, bfloat16, float64, uint8, int8, int16 or int32");
  choose_output(settings.output);
  read_postprocessing();
  in_.resize(input().bytes());
  out_.resize(output().bytes());
  outputs_.assign(signature_.outputs.size(), {nullptr, 0});
  outputs_[output_] = {out_.data(), out_.size()};
  see_picture(settings);
  outside_ = Outside(ops("ranges", input().name), input().name);
}

const Json* Model::ops(const char* kind, const std::string& name) const {
  const Json* all = json_.find(kind);
  return all == nullptr ? nullptr : all->find(name);
}

void Model::choose_output(const std::string& name) {
  std::string names;
  for (size_t k = 0; k < signature_.outputs.size(); k++) {
    names += (k ? ", " : "") + signature_.outputs[k].name;
    if (signature_.outputs[k].name == name) output_ = k;
  }
  if (signature_.outputs.empty()) throw Fault(Kind::kModel, "the model", "no output, only states", "an output");
  if (!name.empty() && output().name != name) throw Fault(Kind::kSettings, "output", name, "one of " + names);
  if (output().type->element == edgelstm::kFloat8) throw Fault(Kind::kModel, "output '" + output().name + "'", output().type->name, "a type that GStreamer's elements know");
}

void Model::read_postprocessing() {
  const Json* post = ops("postprocessing", output().name);
  if (post == nullptr || post->kind != Json::Kind::kArray) return;
  for (const Json& op : post->items) {
    const Json* name = op.find("op");
    const Json* value = op.find("value");
    if (post->items.size() != 1 || name == nullptr || name->text != "threshold" || value == nullptr)
      throw Fault(Kind::kModel, "the model's postprocessing of output '" + output().name + "'", name == nullptr ? "nothing" : name->text, "none, or one 'threshold'",
                  "Sound is for edgelstm run and examples/c/denoise.c");
    threshold_ = true, least_ = float(number_of(*value));
  }
}

void Model::see_picture(const Settings& settings) {
  Shape shape = output().shape;
  const Shape& frame = input().shape;
  frame_like_ = !frame.empty() && (shape == frame || (!shape.empty() && Shape(shape.begin() + 1, shape.end()) == frame));
  int64_t leads = shape.size() == 4 ? shape[0] : 1;
  if (settings.lead > leads) throw Fault(Kind::kSettings, "lead", std::to_string(settings.lead), "1 to " + std::to_string(leads) + ", or 0 for all of them side by side");
  if (!settings.range.empty()) {
    char* end = nullptr;
    low_ = float(g_ascii_strtod(settings.range.c_str(), &end));
    bool good = end != settings.range.c_str() && *end == ',';
    char* second = end + 1;
    if (good) high_ = float(g_ascii_strtod(second, &end));
    if (!good || end == second || *end != '\0' || !(low_ < high_) || !std::isfinite(high_ - low_))
      throw Fault(Kind::kSettings, "range", settings.range, "two numbers, the values of black and white, such as 0,1");
    fixed_range_ = true;
  }
  channels_last_ = has_channels_last(shape);
  if (channels_last_) shape = {shape[2], shape[0], shape[1]};
  if (shape.size() < 2 || shape.size() > 4) return;
  shape.insert(shape.begin(), 4 - shape.size(), 1);
  if ((shape[1] != 1 && shape[1] != 3) || std::min(shape[2], shape[3]) < 2) return;
  leads_ = settings.lead == 0 ? shape[0] : 1;
  if (shape[2] > 32767 || shape[3] > 32767 / leads_) return;
  lead_ = settings.lead == 0 ? 0 : settings.lead - 1;
  channels_ = int(shape[1]), height_ = shape[2], width_ = shape[3];
}

const char* Model::tensor_type() const {
  if (becomes_float()) return "float32";
  return output().type->element == edgelstm::kBool ? "uint8" : output().type->name;
}

// No axis of one in front: nnstreamer has the innermost first, and as many of one behind.
Shape Model::tensor_shape() const { return output().shape; }

size_t Model::tensor_bytes() const { return size_t(output().count) * (becomes_float() ? 4 : output().type->size); }

bool Model::takes_picture(int channels) const {
  Size size = raw_size(ops("preprocessing", input().name), input().shape);
  if (size.height == 0) return false;
  Shape shape = {size.height, size.width};
  if (channels > 1) shape.push_back(channels);
  try {
    Preprocess(ops("preprocessing", input().name), input().name, shape, input().shape);
  } catch (const Fault&) {
    return false;
  }
  return true;
}

void Model::prepare(const std::vector<Shape>& shapes, Element element, double white) {
  const Json* all = ops("preprocessing", input().name);
  std::unique_ptr<Preprocess> made;
  size_t fits = 0;
  for (; fits < shapes.size(); fits++) {
    try {
      made = std::make_unique<Preprocess>(all, input().name, shapes[fits], input().shape);
      break;
    } catch (const Fault&) {
      if (fits + 1 == shapes.size()) throw;
    }
  }
  if (white > 0) check_depth(all, input().name, white);
  if (!size_.empty() && size_ != shapes[fits] && !any_size(all))
    throw Fault(Kind::kFrames, "frames for input '" + input().name + "'", text_of(shapes[fits]) + ", and " + text_of(size_) + " before",
                "one size, or preprocessing in which 'resize' comes before everything else that shapes a frame");
  preprocess_ = std::move(made);
  raw_ = {shapes[fits], element, white};
  size_ = raw_.shape;
  if (fixed_range_ || !is_picture()) return;
  low_ = 0, high_ = 1;
  undo_.clear();
  if (threshold_) return;  // marks, not values of frames
  if (output().type->element == edgelstm::kUint8) {
    high_ = 255;
  } else if (frame_like_ && white > 0 && inverse(all, &undo_)) {
    high_ = float(white);  // a frame, in the units of the source's
  }
}

void Model::step(const void* frame, std::string* note) {
  size_t count = size_t(elements(raw_.shape));
  frame_.resize(count);
  if (raw_.element == Element::kUint8) {
    auto from = static_cast<const uint8_t*>(frame);
    std::copy(from, from + count, frame_.begin());
  } else if (raw_.element == Element::kUint16) {
    read_all<uint16_t>(static_cast<const char*>(frame), &frame_);
  } else {
    memcpy(frame_.data(), frame, count * sizeof(float));
  }
  (*preprocess_)(&frame_);
  cast();
  *note = outside_.look(frame_);
  edgelstm_error error;
  edgelstm_input in = {in_.data(), in_.size()};
  check(edgelstm_step(&stream_, 1, &in, outputs_.data(), &error), error);
}

// The frame as the model's type, which has to be finite: NaN would stay in the state.
void Model::cast() {
  const Spec& spec = input();
  uint32_t odd = 0;  // without a branch, so that it is done by fours
  for (float value : frame_) odd |= (bits_of(value) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  if (odd != 0)
    for (float value : frame_)
      if (!std::isfinite(value)) throw Fault(Kind::kFrames, "a frame for input '" + spec.name + "'", std::isnan(value) ? "NaN" : "infinity", "finite numbers", "The state has not moved");
  switch (spec.type->element) {
    case edgelstm::kFloat32: memcpy(in_.data(), frame_.data(), in_.size()); break;
    case edgelstm::kFloat64: cast_all<double>(frame_, &in_, [](float value) { return double(value); }); break;
    case edgelstm::kFloat16: cast_all<uint16_t>(frame_, &in_, [&](float value) { return checked(spec, value, to_half(value), 0x7c00); }); break;
    case edgelstm::kBfloat16: cast_all<uint16_t>(frame_, &in_, [&](float value) { return checked(spec, value, to_bfloat(value), 0x7f80); }); break;
    case edgelstm::kUint8: cast_all<uint8_t>(frame_, &in_, saturated<uint8_t>); break;
    case edgelstm::kInt8: cast_all<int8_t>(frame_, &in_, saturated<int8_t>); break;
    case edgelstm::kInt16: cast_all<int16_t>(frame_, &in_, saturated<int16_t>); break;
    default: cast_all<int32_t>(frame_, &in_, saturated<int32_t>);
  }
}

void Model::values(size_t first, size_t count, Values* to) const {
  const char* data = out_.data() + first * output().type->size;
  to->resize(count);
  float* value = to->data();
  switch (output().type->element) {
    case edgelstm::kFloat32: memcpy(value, data, count * sizeof(float)); break;
    case edgelstm::kUint8: case edgelstm::kBool: read_all<uint8_t>(data, to); break;
    case edgelstm::kInt8: read_all<int8_t>(data, to); break;
    case edgelstm::kInt16: read_all<int16_t>(data, to); break;
    case edgelstm::kInt32: read_all<int32_t>(data, to); break;
    case edgelstm::kInt64: read_all<int64_t>(data, to); break;
    case edgelstm::kFloat64: read_all<double>(data, to); break;
    case edgelstm::kFloat16: read_all<uint16_t>(data, to, from_half); break;
    default: read_all<uint16_t>(data, to, from_bfloat);
  }
  if (threshold_)
    for (size_t k = 0; k < count; k++) value[k] = value[k] >= least_ ? 1.0f : 0.0f;
}

void Model::tensor(void* to) {
  if (!becomes_float()) {
    memcpy(to, out_.data(), out_.size());
    return;
  }
  values(0, size_t(output().count), &shown_);
  memcpy(to, shown_.data(), shown_.size() * sizeof(float));
}

void Model::picture(uint8_t* to, size_t stride, float* outside) {
  size_t pixels = size_t(height_ * width_), channels = size_t(channels_), wide = size_t(width_);
  values(lead_ * channels * pixels, size_t(leads_) * channels * pixels, &shown_);
  for (const Transform& undo : undo_) undo(&shown_);
  // As shares of the range, NaN black; what lies far outside of it is told. Without branches, so that it is done by fours.
  float span = high_ - low_, least = 0, most = 1;
  for (float& value : shown_) {
    float share = (value - low_) / span;
    share = share == share ? share : 0.0f;
    least = share < least ? share : least, most = share > most ? share : most;
    share = share > 0.0f ? share : 0.0f;
    value = share < 1.0f ? share : 1.0f;
  }
  if (!fixed_range_ && (least < -0.1f || most > 1.1f)) *outside = low_ + span * (most > 1.1f ? most : least);
  for (size_t lead = 0; lead < size_t(leads_); lead++)
    for (size_t y = 0; y < size_t(height_); y++) {
      uint8_t* row = to + y * stride + lead * wide * channels;
      for (size_t c = 0; c < channels; c++) {
        size_t step = channels_last_ ? channels : 1;
        const float* value = shown_.data() + lead * channels * pixels + (channels_last_ ? y * wide * channels + c : c * pixels + y * wide);
        // To the nearest, ties to even: a float of that size has no fraction.
        for (size_t x = 0; x < wide; x++) row[x * channels + c] = uint8_t(int((value[x * step] * 255 + 12582912.0f) - 12582912.0f));
      }
    }
}

void Model::reset() {
  edgelstm_error error;
  check(edgelstm_reset(stream_, &error), error);
}

std::string Model::save() const {
  std::string snapshot(edgelstm_state_size(program_.get()), '\0');
  edgelstm_error error;
  check(edgelstm_state_save(stream_, &snapshot[0], snapshot.size(), &error), error);
  return snapshot;
}

void Model::load(const std::string& snapshot, const std::string& where) {
  edgelstm_error error;
  check(edgelstm_state_load(stream_, snapshot.data(), snapshot.size(), &error), error, "state-file " + where + ": ");
}

}  // namespace edgelstm_gst
