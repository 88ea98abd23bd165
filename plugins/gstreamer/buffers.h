// Buffers of GStreamer's, mapped as long as they are looked at.
#pragma once

#include <gst/video/video.h>

#include <cstring>
#include <vector>

#include "caps.h"
#include "model.h"

namespace edgelstm_gst {

// A buffer's bytes, unmapped at the end.
class Mapped {
 public:
  Mapped(GstBuffer* buffer, GstMapFlags flags) : buffer_(buffer) {
    if (!gst_buffer_map(buffer, &map_, flags)) throw Fault(Kind::kRun, "a buffer that can't be mapped");
  }
  ~Mapped() { gst_buffer_unmap(buffer_, &map_); }
  Mapped(const Mapped&) = delete;
  GstMapInfo* operator->() { return &map_; }

 private:
  GstBuffer* buffer_;
  GstMapInfo map_;
};

class Picture {
 public:
  Picture(const GstVideoInfo& info, GstBuffer* buffer, GstMapFlags flags) {
    if (gst_buffer_get_size(buffer) == 0 || !gst_video_frame_map(&frame_, const_cast<GstVideoInfo*>(&info), buffer, flags))
      throw Fault(Kind::kFrames, "a video buffer", std::to_string(gst_buffer_get_size(buffer)) + " bytes", std::to_string(GST_VIDEO_INFO_SIZE(&info)), "Its caps and its bytes disagree");
  }
  ~Picture() { gst_video_frame_unmap(&frame_); }
  Picture(const Picture&) = delete;
  uint8_t* rows() { return static_cast<uint8_t*>(GST_VIDEO_FRAME_PLANE_DATA(&frame_, 0)); }
  size_t stride() { return size_t(GST_VIDEO_FRAME_PLANE_STRIDE(&frame_, 0)); }

 private:
  GstVideoFrame frame_;
};

// One frame out of a buffer of that format into the model.
inline void step_buffer(Model* model, const Format& format, GstBuffer* in, std::string* note) {
  if (!format.video) {
    Mapped bytes(in, GST_MAP_READ);
    if (bytes->size != format.bytes)
      throw Fault(Kind::kFrames, "a buffer of other/tensors", std::to_string(bytes->size) + " bytes", std::to_string(format.bytes), "Its caps and its bytes disagree");
    model->step(bytes->data, note);
    return;
  }
  Picture picture(format.info, in, GST_MAP_READ);
  const GstVideoInfo& info = format.info;
  size_t row = size_t(GST_VIDEO_INFO_WIDTH(&info)) * size_t(GST_VIDEO_INFO_COMP_PSTRIDE(&info, 0)), rows = size_t(GST_VIDEO_INFO_HEIGHT(&info));
  if (picture.stride() == row) return model->step(picture.rows(), note);
  static thread_local std::vector<uint8_t> packed;
  packed.resize(row * rows);
  for (size_t y = 0; y < rows; y++) memcpy(packed.data() + y * row, picture.rows() + y * picture.stride(), row);
  model->step(packed.data(), note);
}

}  // namespace edgelstm_gst
