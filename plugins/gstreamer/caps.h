// What the element's pads speak: video/x-raw of three formats, and nnstreamer's other/tensors with one tensor in it.
#pragma once

#include <gst/video/video.h>

#include <string>
#include <vector>

#include "model.h"

#define EDGELSTM_VIDEO_IN "video/x-raw, format = (string) { GRAY8, RGB, GRAY16_LE }, width = (int) [ 1, max ], height = (int) [ 1, max ], framerate = (fraction) [ 0, max ]"
#define EDGELSTM_VIDEO_OUT "video/x-raw, format = (string) { GRAY8, RGB }, width = (int) [ 1, max ], height = (int) [ 1, max ], framerate = (fraction) [ 0, max ]"
#define EDGELSTM_TENSORS_IN "other/tensors, format = (string) static, num_tensors = (int) 1, types = (string) { float32, uint8 }"
#define EDGELSTM_TENSORS_OUT "other/tensors, format = (string) static, num_tensors = (int) 1"

namespace edgelstm_gst {

// One side's format, fixed.
struct Format {
  bool video = false;
  GstVideoInfo info;           // of video
  Element element;             // of one value
  std::vector<Shape> shapes;   // of a frame as it may be read: nnstreamer doesn't say how many axes there are
  size_t bytes = 0;            // of a buffer
};

// Throws Fault for caps that are none of these.
Format read_caps(const GstCaps* caps);

// Bytes of a buffer; 0 where caps don't say.
size_t buffer_size(const GstCaps* caps);

// What may come out of the model beside `caps`, or go in, the frame rate kept. Owned by the caller.
GstCaps* caps_after(const Model& model, const GstCaps* caps);
GstCaps* caps_before(const Model& model, const GstCaps* caps);

}  // namespace edgelstm_gst
