#include "operations.h"

#include <glib.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <map>
#include <set>

namespace edgelstm_gst {
namespace {

using edgelstm::Json;
constexpr int64_t kMostElements = int64_t{1} << 28;

[[noreturn]] void refuse(const std::string& what, const std::string& found = "", const std::string& expected = "") {
  throw Fault(Kind::kFrames, what, found, expected);
}

// Every operation's keys; those that may be left out begin with a '?'.
const std::map<std::string, std::vector<std::string>> kKeys = {
    {"nodata", {"value", "?replace"}}, {"scale", {"factor", "?offset"}}, {"log1p", {"?scale"}}, {"clip", {"min", "max"}},
    {"normalize", {"mean", "std"}}, {"grey", {}}, {"crop", {"top", "left", "height", "width"}}, {"average", {"factor"}},
    {"resize", {"height", "width"}}, {"samples", {"length", "hop", "rate"}}, {"magnitude", {}}, {"channels_first", {}},
};

const std::string& name_of(const Json& op) {
  const Json* name = op.find("op");
  if (name == nullptr || name->kind != Json::Kind::kText) refuse("an operation without a name");
  auto keys = kKeys.find(name->text);
  if (keys == kKeys.end()) refuse("unknown operation", name->text, "one that this version of the element knows");
  std::set<std::string> known = {"op"};
  for (const std::string& key : keys->second) known.insert(key[0] == '?' ? key.substr(1) : key);
  for (const auto& member : op.members)
    if (known.count(member.first) == 0) refuse(name->text + ": unknown key", member.first);
  return name->text;
}

float number(const Json& op, const char* key, const float* fallback = nullptr) {
  const Json* value = op.find(key);
  if (value == nullptr && fallback != nullptr) return *fallback;
  if (value == nullptr) refuse(std::string("missing key ") + key);
  return float(number_of(*value));
}

float number(const Json& op, const char* key, float fallback) { return number(op, key, &fallback); }

int64_t whole(const Json& op, const char* key) {
  const Json* value = op.find(key);
  if (value == nullptr || value->kind != Json::Kind::kInteger) refuse(std::string(key) + ": no whole number");
  if (value->integer < -(int64_t{1} << 31) || value->integer >= int64_t{1} << 31) refuse(key, value->text, "a size in pixels");
  return value->integer;
}

std::vector<float> numbers(const Json& op, const char* key) {
  const Json* value = op.find(key);
  if (value == nullptr || value->kind != Json::Kind::kArray || value->items.empty()) refuse(std::string(key) + ": no numbers");
  std::vector<float> found;
  for (const Json& item : value->items) found.push_back(float(number_of(item)));
  return found;
}

const std::vector<Json>& list(const Json* ops) {
  static const std::vector<Json> none;
  if (ops == nullptr) return none;
  if (ops->kind != Json::Kind::kArray) refuse("preprocessing that is no list");
  return ops->items;
}

// The axes of height and width.
std::pair<int, int> spatial(const Layout& layout) {
  if (layout.shape.size() - (layout.channel >= 0 ? 1 : 0) != 2) refuse("works on images", text_of(layout.shape), "[H, W], [H, W, C], [C, H, W]");
  return layout.channel == 0 ? std::pair<int, int>{1, 2} : std::pair<int, int>{0, 1};
}

// A frame as outer x n x inner around one axis.
struct Around {
  int64_t outer = 1, n, inner = 1;
  Around(const Shape& shape, int axis) : n(shape[axis]) {
    for (int k = 0; k < axis; k++) outer *= shape[k];
    for (size_t k = axis + 1; k < shape.size(); k++) inner *= shape[k];
  }
};

template <class Change>
Transform each(const Change& change) {
  return [change](Values* x) {
    for (float& value : *x) value = change(value);
  };
}

// Rows `first` to `first + count` along an axis.
Transform part(const Shape& shape, int axis, int64_t first, int64_t count) {
  Around around(shape, axis);
  return [around, first, count, made = Values()](Values* x) mutable {
    made.resize(size_t(around.outer * count * around.inner));
    for (int64_t o = 0; o < around.outer; o++) {
      const float* from = x->data() + (o * around.n + first) * around.inner;
      std::copy(from, from + count * around.inner, made.data() + o * count * around.inner);
    }
    x->swap(made);
  };
}

// Means of `factor` rows along an axis: added one after the other, then divided.
Transform mean(const Shape& shape, int axis, int64_t factor) {
  Around around(shape, axis);
  int64_t count = around.n / factor;
  return [around, factor, count, made = Values()](Values* x) mutable {
    made.resize(size_t(around.outer * count * around.inner));
    for (int64_t o = 0; o < around.outer; o++)
      for (int64_t k = 0; k < count; k++) {
        float* to = made.data() + (o * count + k) * around.inner;
        const float* from = x->data() + (o * around.n + k * factor) * around.inner;
        std::copy(from, from + around.inner, to);
        for (int64_t f = 1; f < factor; f++)
          for (int64_t i = 0; i < around.inner; i++) to[i] += from[f * around.inner + i];
        for (int64_t i = 0; i < around.inner; i++) to[i] /= float(factor);
      }
    x->swap(made);
  };
}

// Linear interpolation along an axis, with half-pixel centres.
Transform resized(const Shape& shape, int axis, int64_t after) {
  Around around(shape, axis);
  std::vector<int64_t> low, high;
  std::vector<float> weight;
  for (int64_t k = 0; k < after; k++) {
    double centre = std::max((double(k) + 0.5) * (double(around.n) / double(after)) - 0.5, 0.0);
    low.push_back(std::min(int64_t(centre), around.n - 1));
    high.push_back(std::min(low.back() + 1, around.n - 1));
    weight.push_back(float(centre - double(low.back())));
  }
  return [around, after, low, high, weight, made = Values()](Values* x) mutable {
    made.resize(size_t(around.outer * after * around.inner));
    for (int64_t o = 0; o < around.outer; o++)
      for (int64_t k = 0; k < after; k++) {
        const float* near = x->data() + (o * around.n + low[size_t(k)]) * around.inner;
        const float* far = x->data() + (o * around.n + high[size_t(k)]) * around.inner;
        float* to = made.data() + (o * after + k) * around.inner;
        for (int64_t i = 0; i < around.inner; i++) to[i] = (far[i] - near[i]) * weight[size_t(k)] + near[i];
      }
    x->swap(made);
  };
}

void build_crop(const Json& op, Layout* layout, std::vector<Transform>* made) {
  auto [rows, columns] = spatial(*layout);
  int64_t top = whole(op, "top"), left = whole(op, "left"), height = whole(op, "height"), width = whole(op, "width");
  Shape& shape = layout->shape;
  if (std::min(top, left) < 0 || std::min(height, width) < 1 || top > shape[rows] - height || left > shape[columns] - width)
    refuse("does not lie inside the frame", "rows " + std::to_string(top) + " to " + std::to_string(top + height) + ", columns " + std::to_string(left) + " to " + std::to_string(left + width),
           "within " + std::to_string(shape[rows]) + " x " + std::to_string(shape[columns]));
  made->push_back(part(shape, rows, top, height));
  shape[rows] = height;
  made->push_back(part(shape, columns, left, width));
  shape[columns] = width;
}

void build_average(const Json& op, Layout* layout, std::vector<Transform>* made) {
  auto [rows, columns] = spatial(*layout);
  int64_t factor = whole(op, "factor"), least = std::min(layout->shape[rows], layout->shape[columns]);
  if (factor < 1 || factor > least) refuse("factor", std::to_string(factor), "1 to " + std::to_string(least));
  for (int axis : {rows, columns}) {
    made->push_back(mean(layout->shape, axis, factor));
    layout->shape[axis] /= factor;
  }
}

void build_resize(const Json& op, Layout* layout, std::vector<Transform>* made) {
  auto [rows, columns] = spatial(*layout);
  int64_t height = whole(op, "height"), width = whole(op, "width");
  if (std::min(height, width) < 1 || height > kMostElements / width || height * width > kMostElements / (layout->channel < 0 ? 1 : layout->shape[layout->channel]))
    refuse("size", std::to_string(height) + " x " + std::to_string(width), "1 x 1 or more, and no more than " + std::to_string(kMostElements) + " values");
  std::vector<std::pair<int, int64_t>> axes = {{rows, height}, {columns, width}};
  const Shape before = layout->shape;
  // The axis that shrinks most first.
  std::stable_sort(axes.begin(), axes.end(), [&](auto& a, auto& b) { return double(a.second) / double(before[a.first]) < double(b.second) / double(before[b.first]); });
  for (auto [axis, after] : axes) {
    if (layout->shape[axis] != after) made->push_back(resized(layout->shape, axis, after));
    layout->shape[axis] = after;
  }
}

void build_normalize(const Json& op, Layout* layout, std::vector<Transform>* made) {
  std::vector<float> centre = numbers(op, "mean"), deviation = numbers(op, "std");
  size_t channels = layout->channel < 0 ? 1 : size_t(layout->shape[layout->channel]);
  for (const std::vector<float>* values : {&centre, &deviation})
    if (values->size() != 1 && values->size() != channels) refuse("number of values in mean and std", std::to_string(values->size()), "1 or " + std::to_string(channels));
  for (float value : deviation)
    if (!(value > 0)) refuse("std", "", "values above 0");
  Around around(layout->shape, layout->channel < 0 ? 0 : layout->channel);
  if (layout->channel < 0) around = Around({1, elements(layout->shape)}, 0);
  made->push_back([around, centre, deviation](Values* x) {
    float* value = x->data();
    for (int64_t o = 0; o < around.outer; o++)
      for (int64_t c = 0; c < around.n; c++) {
        float m = centre[centre.size() == 1 ? 0 : size_t(c)], d = deviation[deviation.size() == 1 ? 0 : size_t(c)];
        for (int64_t i = 0; i < around.inner; i++, value++) *value = (*value - m) / d;
      }
  });
}

void build_grey(Layout* layout, std::vector<Transform>* made) {
  if (layout->channel < 0 && layout->shape.size() == 2) return;
  if (layout->channel < 0 || layout->shape[layout->channel] != 3) refuse("makes grey from RGB", text_of(layout->shape), "three channels");
  Around around(layout->shape, layout->channel);
  layout->shape.erase(layout->shape.begin() + layout->channel);
  layout->channel = -1;
  made->push_back([around, grey = Values()](Values* x) mutable {
    grey.resize(size_t(around.outer * around.inner));
    for (int64_t o = 0; o < around.outer; o++)
      for (int64_t i = 0; i < around.inner; i++) {
        const float* p = x->data() + o * 3 * around.inner + i;
        grey[size_t(o * around.inner + i)] = 0.299f * p[0] + 0.587f * p[around.inner] + 0.114f * p[2 * around.inner];
      }
    x->swap(grey);
  });
}

void build_channels_first(Layout* layout, std::vector<Transform>* made) {
  if (layout->shape.size() != 3 || layout->channel != 2) refuse("moves channels from last to first", text_of(layout->shape), "[H, W, C]");
  int64_t pixels = layout->shape[0] * layout->shape[1], channels = layout->shape[2];
  layout->shape = {channels, layout->shape[0], layout->shape[1]};
  layout->channel = 0;
  made->push_back([pixels, channels, planes = Values()](Values* x) mutable {
    planes.resize(x->size());
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t c = 0; c < channels; c++) planes[size_t(c * pixels + p)] = (*x)[size_t(p * channels + c)];
    x->swap(planes);
  });
}

void build(const Json& op, Layout* layout, std::vector<Transform>* made) {
  const std::string& name = name_of(op);
  if (name == "nodata") {
    float replace = number(op, "replace", 0.0f);
    const Json* value = op.find("value");
    if (value != nullptr && value->kind == Json::Kind::kText && value->text == "nan") {
      made->push_back(each([replace](float x) { return std::isnan(x) ? replace : x; }));
    } else {
      float missing = number(op, "value");
      made->push_back(each([missing, replace](float x) { return x == missing ? replace : x; }));
    }
  } else if (name == "scale") {
    float factor = number(op, "factor"), offset = number(op, "offset", 0.0f);
    made->push_back(each([factor, offset](float x) { return x * factor + offset; }));
  } else if (name == "log1p") {
    float scale = number(op, "scale", 1.0f);
    made->push_back(each([scale](float x) { return scale * std::log1p(x); }));
  } else if (name == "clip") {
    float low = number(op, "min"), high = number(op, "max");
    if (!(low < high)) refuse("min and max", "", "min below max");
    made->push_back(each([low, high](float x) { return x < low ? low : x > high ? high : x; }));
  } else if (name == "normalize") {
    build_normalize(op, layout, made);
  } else if (name == "grey") {
    build_grey(layout, made);
  } else if (name == "crop") {
    build_crop(op, layout, made);
  } else if (name == "average") {
    build_average(op, layout, made);
  } else if (name == "resize") {
    build_resize(op, layout, made);
  } else if (name == "channels_first") {
    build_channels_first(layout, made);
  } else {
    refuse("sound", "an operation on samples", "pictures or tensors, which is what this element takes");
  }
}

// Whether the shapes are one, but for a channel axis of one that a frame lacks.
bool same(const Shape& have, const Shape& want) {
  if (have == want) return true;
  if (want.empty() || have.size() + 1 != want.size()) return false;
  return (want.front() == 1 && std::equal(have.begin(), have.end(), want.begin() + 1)) || (want.back() == 1 && std::equal(have.begin(), have.end(), want.begin()));
}

}  // namespace

double number_of(const Json& value) {
  if (value.kind != Json::Kind::kInteger && value.kind != Json::Kind::kReal) refuse("an operation's value that is no number");
  double number = g_ascii_strtod(value.text.c_str(), nullptr);  // whatever the locale
  if (!(std::fabs(number) <= double(FLT_MAX))) refuse("an operation's value", value.text, "a number of float32");
  return number;
}

Layout raw_layout(const Shape& shape, bool channels_last) {
  if (shape.size() == 1) return {shape, 0};
  if (shape.size() == 3) return {shape, channels_last || shape[2] <= 4 ? 2 : 0};
  return {shape, -1};
}

Preprocess::Preprocess(const Json* ops, const std::string& input, const Shape& raw, const Shape& want) {
  bool channels_last = false;
  for (const Json& op : list(ops)) channels_last = channels_last || name_of(op) == "channels_first";
  Layout layout = raw_layout(raw, channels_last);
  std::string trail = "source " + text_of(raw);
  for (const Json& op : list(ops)) {
    const std::string& name = name_of(op);
    try {
      build(op, &layout, &transforms_);
    } catch (const Fault& fault) {
      throw Fault(Kind::kFrames, "the model's preprocessing, " + name + ": " + fault.what());
    }
    trail += " -> " + name + " " + text_of(layout.shape);
  }
  if (same(layout.shape, want)) return;
  std::string hint = "Export the model with the preprocessing that its frames need (--preprocess)";
  Size size = raw_size(ops, want);
  if (raw.size() >= 2 && size.height > 0)
    hint = "Put videoconvert ! videoscale ! video/x-raw,width=" + std::to_string(size.width) + ",height=" + std::to_string(size.height) + " in front, or export the model with 'resize' in its preprocessing";
  throw Fault(Kind::kFrames, "frames for input '" + input + "'", text_of(layout.shape) + " (" + trail + ")", text_of(want) + " as the model takes it", hint);
}

Size raw_size(const Json* ops, const Shape& want) {
  if (want.size() < 2) return {0, 0};
  const std::vector<Json>& all = list(ops);
  bool first = false;
  for (const Json& op : all) first = first || name_of(op) == "channels_first";
  bool last = !first && want.size() == 3 && want[2] <= 4;
  Size size = last ? Size{want[0], want[1]} : Size{want[want.size() - 2], want[want.size() - 1]};
  for (auto op = all.rbegin(); op != all.rend(); ++op) {
    const std::string& name = name_of(*op);
    if (name == "crop") size = {whole(*op, "top") + size.height, whole(*op, "left") + size.width};
    if (name == "average") size = {size.height * whole(*op, "factor"), size.width * whole(*op, "factor")};
    // Any size will do: one that it leaves alone.
    if (name == "resize") size = {whole(*op, "height"), whole(*op, "width")};
    if (size.height < 1 || size.width < 1 || size.height > (1 << 20) || size.width > (1 << 20)) return {0, 0};
  }
  return size;
}

void check_depth(const Json* ops, const std::string& input, double white) {
  for (const Json& op : list(ops)) {
    const std::string& name = name_of(op);
    if (name == "normalize" || name == "log1p") return;
    if (name != "scale") continue;
    double factor = number_of(op.at("factor")), offset = op.find("offset") != nullptr ? number_of(op.at("offset")) : 0;
    double meant = 0;
    for (double depth : {255.0, 1023.0, 4095.0, 16383.0, 65535.0})
      if (meant == 0 && std::fabs(factor * depth + offset - 1) < 0.02) meant = depth;
    if (meant == 0 || std::fabs(factor * white + offset - 1) < 0.02) return;
    throw Fault(Kind::kFrames, "frames for input '" + input + "'", "values 0 to " + std::to_string(int(white)),
                "0 to " + std::to_string(int(meant)) + ", which the model's 'scale' brings to 1", "Export the model with a scale for this depth, or choose another format: GRAY16_LE has 0 to 65535");
  }
}

bool any_size(const Json* ops) {
  for (const Json& op : list(ops)) {
    const std::string& name = name_of(op);
    if (name == "resize") return true;
    if (name == "crop" || name == "average") return false;
  }
  return false;
}

bool inverse(const Json* ops, std::vector<Transform>* undo) {
  const std::vector<Json>& all = list(ops);
  std::vector<Transform> made;
  for (auto op = all.rbegin(); op != all.rend(); ++op) {
    const std::string& name = name_of(*op);
    if (name == "log1p") {
      float scale = number(*op, "scale", 1.0f);
      made.push_back(each([scale](float y) { return std::expm1(y / scale); }));
    } else if (name == "scale") {
      float factor = number(*op, "factor"), offset = number(*op, "offset", 0.0f);
      if (factor == 0) return false;
      made.push_back(each([factor, offset](float y) { return (y - offset) / factor; }));
    } else if (name == "normalize") {
      std::vector<float> centre = numbers(*op, "mean"), deviation = numbers(*op, "std");
      if (centre.size() != 1 || deviation.size() != 1) return false;
      made.push_back(each([m = centre[0], d = deviation[0]](float y) { return y * d + m; }));
    }
  }
  *undo = std::move(made);
  return true;
}

}  // namespace edgelstm_gst
