// What is missing before a frame, as GStreamer says it: marks, events, time stamps. Of one stream, used by one thread.
#pragma once

#include <gst/gst.h>

#include <string>

namespace edgelstm_gst {

// A frame before or behind the segment, as parsers give them on their way to where a seek goes: nobody will see it.
inline bool is_outside(const GstSegment& segment, const GstBuffer* buffer) {
  GstClockTime begin = GST_BUFFER_PTS(buffer), length = GST_BUFFER_DURATION(buffer);
  if (segment.format != GST_FORMAT_TIME || !GST_CLOCK_TIME_IS_VALID(begin)) return false;
  return !gst_segment_clip(&segment, GST_FORMAT_TIME, begin, GST_CLOCK_TIME_IS_VALID(length) ? begin + length : begin, nullptr, nullptr);
}

class Gaps {
 public:
  // At a start and a flush: what comes next has nothing before it.
  void begin_anew() {
    began_ = false;
    last_ = GST_CLOCK_TIME_NONE;
    gap_.clear();
  }

  // Something is missing before the next frame.
  void note(const char* why) {
    if (began_) gap_ = why;
  }

  void stream(const char* name) {
    if (stream_ != name) note("another stream");
    stream_ = name;
  }

  // Before this frame; empty: nothing. most: seconds from one frame to the next, 0 for any.
  std::string before(const GstBuffer* buffer, double most) {
    std::string gap = gap_;
    gap_.clear();
    GstClockTime now = GST_BUFFER_PTS(buffer), last = last_;
    bool began = began_;
    began_ = true;
    if (GST_CLOCK_TIME_IS_VALID(now)) last_ = now;
    if (!began) return "";  // the first buffer is always marked as one behind a discontinuity
    if (GST_BUFFER_FLAG_IS_SET(buffer, GST_BUFFER_FLAG_DISCONT)) gap = "a discontinuity";
    if (GST_CLOCK_TIME_IS_VALID(now) && GST_CLOCK_TIME_IS_VALID(last)) {
      if (now < last) gap = "time goes back by " + seconds(last - now);
      else if (most > 0 && double(now - last) > most * double(GST_SECOND)) gap = seconds(now - last) + " without a frame";
    }
    return gap;
  }

 private:
  bool began_ = false;
  GstClockTime last_ = GST_CLOCK_TIME_NONE;
  std::string gap_, stream_;

  static std::string seconds(GstClockTime time) { return std::to_string(double(time) / double(GST_SECOND)) + " s"; }
};

}  // namespace edgelstm_gst
