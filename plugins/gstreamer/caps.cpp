#include "caps.h"

#include <cstdlib>

namespace edgelstm_gst {
namespace {

constexpr int64_t kMostElements = (int64_t{1} << 31) - 1;

std::string text_of(const GstCaps* caps) {
  gchar* text = gst_caps_to_string(caps);
  std::string found = text;
  g_free(text);
  return found;
}

size_t type_size(const char* type) {
  if (type == nullptr) return 0;
  for (auto [name, size] : {std::pair<const char*, size_t>{"float32", 4}, {"uint8", 1}, {"int8", 1}, {"float16", 2}, {"int16", 2}, {"uint16", 2},
                            {"int32", 4}, {"uint32", 4}, {"float64", 8}, {"int64", 8}, {"uint64", 8}})
    if (g_strcmp0(name, type) == 0) return size;
  return 0;
}

// "3:224:224:1", the innermost axis first, as a shape; empty where it is no such text.
Shape read_dimensions(const char* text) {
  Shape shape;
  int64_t count = 1;
  while (text != nullptr && *text != '\0') {
    char* end = nullptr;
    int64_t size = g_ascii_strtoll(text, &end, 10);
    if (end == text || size < 1 || count > kMostElements / size || shape.size() == 16 || (*end != ':' && *end != '\0')) return {};
    count *= size;
    shape.insert(shape.begin(), size);
    if (*end == ':' && end[1] == '\0') return {};
    text = *end == ':' ? end + 1 : end;
  }
  return shape;
}

std::string write_dimensions(const Shape& shape) {
  std::string text;
  for (size_t k = 0; k < std::max<size_t>(shape.size(), 4); k++)
    text += (k ? ":" : "") + std::to_string(k < shape.size() ? shape[shape.size() - 1 - k] : 1);
  return text;
}

// The frame rate of a structure of the other side's, if it has one.
void keep_rate(const GstStructure* from, GstStructure* to) {
  const GValue* rate = gst_structure_get_value(from, "framerate");
  if (rate != nullptr) gst_structure_set_value(to, "framerate", rate);
}

GstStructure* video(const char* format) {
  return gst_structure_new("video/x-raw", "format", G_TYPE_STRING, format, "width", GST_TYPE_INT_RANGE, 1, G_MAXINT, "height", GST_TYPE_INT_RANGE, 1, G_MAXINT,
                           "framerate", GST_TYPE_FRACTION_RANGE, 0, 1, G_MAXINT, 1, nullptr);
}

}  // namespace

Format read_caps(const GstCaps* caps) {
  Format format;
  const GstStructure* structure = gst_caps_get_structure(caps, 0);
  if (gst_structure_has_name(structure, "video/x-raw")) {
    format.video = true;
    if (!gst_video_info_from_caps(&format.info, caps)) throw Fault(Kind::kFrames, "video", text_of(caps), "a format, a width and a height");
    int64_t height = GST_VIDEO_INFO_HEIGHT(&format.info), width = GST_VIDEO_INFO_WIDTH(&format.info);
    bool rgb = GST_VIDEO_INFO_FORMAT(&format.info) == GST_VIDEO_FORMAT_RGB;
    format.element = GST_VIDEO_INFO_FORMAT(&format.info) == GST_VIDEO_FORMAT_GRAY16_LE ? Element::kUint16 : Element::kUint8;
    format.shapes = {rgb ? Shape{height, width, 3} : Shape{height, width}};
    format.bytes = GST_VIDEO_INFO_SIZE(&format.info);
    return format;
  }
  const char* type = gst_structure_get_string(structure, "types");
  Shape shape = read_dimensions(gst_structure_get_string(structure, "dimensions"));
  int only = 0;  // 3, without quotes and colon, is a number
  if (gst_structure_get_int(structure, "dimensions", &only) && only > 0) shape = {only};
  size_t size = type_size(type);
  if (shape.empty() || size == 0)
    throw Fault(Kind::kFrames, "other/tensors", text_of(caps), "one static tensor with its dimensions, such as dimensions=(string)3:224:224:1, types=(string)float32");
  format.element = size == 4 ? Element::kFloat32 : Element::kUint8;
  format.bytes = size * size_t(elements(shape));
  // Axes of one in front are the stream's, or fill up: the fewest first.
  size_t most = 0;
  while (most + 1 < shape.size() && shape[most] == 1) most++;
  for (size_t left_out = most + 1; left_out-- > 0;) format.shapes.emplace_back(shape.begin() + left_out, shape.end());
  return format;
}

size_t buffer_size(const GstCaps* caps) {
  try {
    return read_caps(caps).bytes;
  } catch (const Fault&) {
    return 0;
  }
}

GstCaps* caps_after(const Model& model, const GstCaps* caps) {
  GstCaps* made = gst_caps_new_empty();
  for (bool picture : {true, false}) {
    if (picture ? !model.is_picture() : model.tensor_type() == nullptr) continue;
    for (guint k = 0; k < gst_caps_get_size(caps); k++) {
      GstStructure* one;
      if (picture) {
        one = video(model.channels() == 3 ? "RGB" : "GRAY8");
        gst_structure_set(one, "width", G_TYPE_INT, int(model.width()), "height", G_TYPE_INT, int(model.height()), nullptr);
      } else {
        one = gst_structure_new("other/tensors", "format", G_TYPE_STRING, "static", "num_tensors", G_TYPE_INT, 1, "types", G_TYPE_STRING, model.tensor_type(), "dimensions",
                                G_TYPE_STRING, write_dimensions(model.tensor_shape()).c_str(), "framerate", GST_TYPE_FRACTION_RANGE, 0, 1, G_MAXINT, 1, nullptr);
      }
      keep_rate(gst_caps_get_structure(caps, k), one);
      made = gst_caps_merge_structure(made, one);
    }
  }
  return made;
}

GstCaps* caps_before(const Model& model, const GstCaps* caps) {
  // What the model's frames can be made of; all of it where nothing can, so that the reason is said once caps are there.
  bool grey = model.takes_picture(1), rgb = model.takes_picture(3), any = !grey && !rgb;
  GstCaps* made = gst_caps_new_empty();
  for (guint k = 0; k < gst_caps_get_size(caps); k++) {
    const GstStructure* other = gst_caps_get_structure(caps, k);
    for (auto [format, wanted] : {std::pair<const char*, bool>{"RGB", rgb || any}, {"GRAY8", grey || any}, {"GRAY16_LE", grey || any}}) {
      if (!wanted) continue;
      GstStructure* one = video(format);
      keep_rate(other, one);
      made = gst_caps_merge_structure(made, one);
    }
    GstCaps* tensors = gst_caps_from_string(EDGELSTM_TENSORS_IN);
    GstStructure* one = gst_structure_copy(gst_caps_get_structure(tensors, 0));
    gst_caps_unref(tensors);
    keep_rate(other, one);
    made = gst_caps_merge_structure(made, one);
  }
  return made;
}

}  // namespace edgelstm_gst
