// How well a video was foreseen, without Python: GStreamer decodes, moving_digits' model forecasts, and what came is held against it.
// A line a frame: seconds, mean absolute error of the forecast that the frame before gave.
//
//     video digits.onnx film.mp4
#include <edgelstm.h>
#include <gst/app/gstappsink.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

constexpr int kSide = 64, kPixels = kSide * kSide, kLeads = 10;
static_assert(3 * kSide % 4 == 0, "GStreamer's rows begin at multiples of 4 bytes: others have some between them");
static edgelstm_error error;

static void check(int code) {
  if (code == EDGELSTM_OK) return;
  fprintf(stderr, "video: %s. %s\n", error.what, error.hint);
  exit(2);
}

// The next frame; null at the end. An error ends the program.
static GstSample* next(GstElement* pipeline, GstElement* sink) {
  for (;;) {
    GstSample* sample = gst_app_sink_try_pull_sample(GST_APP_SINK(sink), GST_SECOND / 10);
    if (sample != nullptr) return sample;
    bool end = gst_app_sink_is_eos(GST_APP_SINK(sink));
    GstMessage* failed = gst_bus_pop_filtered(GST_ELEMENT_BUS(pipeline), GST_MESSAGE_ERROR);
    if (failed != nullptr) {
      GError* why;
      gst_message_parse_error(failed, &why, nullptr);
      fprintf(stderr, "video: %s\n", why->message);
      exit(2);
    }
    if (end) return nullptr;
  }
}

int main(int count, char** arguments) {
  if (count != 3) return fprintf(stderr, "video digits.onnx film.mp4\n"), 2;
  gst_init(nullptr, nullptr);
  edgelstm_program* program;
  edgelstm_stream* stream;
  check(edgelstm_open(arguments[1], nullptr, &program, &error));
  check(edgelstm_stream_new(program, &stream, &error));
  // RGB: grey from a video of limited range would be another grey than the model's.
  std::string caps = "video/x-raw,format=RGB,width=" + std::to_string(kSide) + ",height=" + std::to_string(kSide);
  GstElement* pipeline = gst_parse_launch(("filesrc name=file ! decodebin ! videoconvert ! videoscale ! " + caps + " ! appsink name=sink sync=false max-buffers=4").c_str(), nullptr);
  if (pipeline == nullptr) return fprintf(stderr, "video: GStreamer's plugins base and good are needed\n"), 2;
  GstElement *file = gst_bin_get_by_name(GST_BIN(pipeline), "file"), *sink = gst_bin_get_by_name(GST_BIN(pipeline), "sink");
  g_object_set(file, "location", arguments[2], nullptr);
  gst_element_set_state(pipeline, GST_STATE_PLAYING);

  std::vector<float> frame(kPixels), forecast(kLeads * kPixels);
  edgelstm_input in = {frame.data(), frame.size() * sizeof(float)};
  edgelstm_output out = {forecast.data(), forecast.size() * sizeof(float)};
  bool first = true;
  while (GstSample* sample = next(pipeline, sink)) {
    GstBuffer* buffer = gst_sample_get_buffer(sample);
    GstMapInfo map;
    if (!gst_buffer_map(buffer, &map, GST_MAP_READ) || map.size < 3 * kPixels) return fprintf(stderr, "video: a short buffer\n"), 2;
    for (int k = 0; k < kPixels; k++) frame[k] = (0.299f * map.data[3 * k] + 0.587f * map.data[3 * k + 1] + 0.114f * map.data[3 * k + 2]) / 255;
    gst_buffer_unmap(buffer, &map);
    if (!first && GST_BUFFER_IS_DISCONT(buffer)) check(edgelstm_reset(stream, &error)), first = true;
    double off = 0;  // the first kPixels of the forecast are one frame ahead
    for (int k = 0; k < kPixels; k++) off += std::fabs(frame[k] - forecast[k]) / kPixels;
    if (!first) printf("%.3f %.6f\n", double(GST_BUFFER_PTS(buffer)) / GST_SECOND, off);
    check(edgelstm_step(&stream, 1, &in, &out, &error));
    first = false;
    gst_sample_unref(sample);
  }

  gst_element_set_state(pipeline, GST_STATE_NULL);
  edgelstm_close(program);
  return first ? 2 : 0;
}
