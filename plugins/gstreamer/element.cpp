// The GStreamer element `edgelstm`: frames in, what a recurrent model makes of them out, its state kept from frame to frame.
#include <gst/base/gstbasetransform.h>
#include <gst/gst.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>

#include "buffers.h"
#include "caps.h"
#include "gaps.h"
#include "model.h"
#include "statefile.h"

using edgelstm_gst::Fault;
using edgelstm_gst::Format;
using edgelstm_gst::Kind;
using edgelstm_gst::Model;

GST_DEBUG_CATEGORY_STATIC(edgelstm_debug);
#define GST_CAT_DEFAULT edgelstm_debug

namespace {

enum OnGap { kReset, kHold, kError };
enum { PROP_0, PROP_MODEL, PROP_DEVICE, PROP_ON_GAP, PROP_MAX_GAP, PROP_STATE_FILE, PROP_OUTPUT, PROP_LEAD, PROP_RANGE, PROP_THREADS, PROP_ONNXRUNTIME, PROP_OPERATORS, PROP_FRAMES, PROP_GAPS };

// Fields that applications set are read and written under the object's lock; the rest is the streaming thread's.
struct Held {
  edgelstm_gst::Settings settings;
  std::string device = "cpu", state_file;
  OnGap on_gap = kHold;
  double max_gap = 0;
  guint64 frames = 0, gaps = 0;
  bool reset_wanted = false;

  std::shared_ptr<Model> model;  // set and dropped under the lock, since others ask for caps
  std::string kept_in;   // the state file of this run
  bool moved = false;    // since the state was last written
  Format in, out;
  edgelstm_gst::Gaps missing;
  std::atomic<bool> failed{false}, refused_told{false};  // an error or a warning was posted
  bool outside_told = false, turned_told = false;
};

struct Edgelstm {
  GstBaseTransform parent;
  Held* held;
};

struct EdgelstmClass {
  GstBaseTransformClass parent;
};

GType edgelstm_get_type();
#define EDGELSTM(object) (G_TYPE_CHECK_INSTANCE_CAST((object), edgelstm_get_type(), Edgelstm))
G_DEFINE_TYPE(Edgelstm, edgelstm, GST_TYPE_BASE_TRANSFORM)

GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE("sink", GST_PAD_SINK, GST_PAD_ALWAYS, GST_STATIC_CAPS(EDGELSTM_VIDEO_IN "; " EDGELSTM_TENSORS_IN));
GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE("src", GST_PAD_SRC, GST_PAD_ALWAYS, GST_STATIC_CAPS(EDGELSTM_VIDEO_OUT "; " EDGELSTM_TENSORS_OUT));

GType on_gap_type() {
  static gsize once = 0;
  if (g_once_init_enter(&once)) {
    static const GEnumValue values[] = {
        {kReset, "Begin anew, at the model's initial state", "reset"}, {kHold, "Keep the state and go on", "hold"}, {kError, "End with an error", "error"}, {0, nullptr, nullptr}};
    g_once_init_leave(&once, g_enum_register_static("EdgelstmOnGap", values));
  }
  return once;
}

// One message a run: sources that are refused try again.
void post(Edgelstm* self, Kind kind, const char* what) {
  if (self->held->failed.exchange(true)) return;
  switch (kind) {
    case Kind::kSettings: GST_ELEMENT_ERROR(self, LIBRARY, SETTINGS, ("%s", what), (nullptr)); break;
    case Kind::kLibrary: GST_ELEMENT_ERROR(self, LIBRARY, INIT, ("%s", what), (nullptr)); break;
    case Kind::kModel: GST_ELEMENT_ERROR(self, RESOURCE, OPEN_READ, ("%s", what), (nullptr)); break;
    case Kind::kFrames: GST_ELEMENT_ERROR(self, STREAM, FORMAT, ("%s", what), (nullptr)); break;
    case Kind::kRun: GST_ELEMENT_ERROR(self, STREAM, FAILED, ("%s", what), (nullptr)); break;
    case Kind::kRead: GST_ELEMENT_ERROR(self, RESOURCE, READ, ("%s", what), (nullptr)); break;
    case Kind::kWrite: GST_ELEMENT_ERROR(self, RESOURCE, WRITE, ("%s", what), (nullptr)); break;
  }
}

// No exception leaves the element: one error is posted, and false is returned.
template <class Work>
bool tried(Edgelstm* self, const Work& work) {
  try {
    work();
    return true;
  } catch (const Fault& fault) {
    post(self, fault.kind, fault.what());
  } catch (const std::bad_alloc&) {
    post(self, Kind::kRun, "out of memory");
  } catch (const std::exception& other) {
    post(self, Kind::kRun, other.what());
  }
  return false;
}

std::shared_ptr<Model> model_of(Edgelstm* self) {
  GST_OBJECT_LOCK(self);
  std::shared_ptr<Model> model = self->held->model;
  GST_OBJECT_UNLOCK(self);
  return model;
}

void set_model(Edgelstm* self, std::shared_ptr<Model> model) {
  GST_OBJECT_LOCK(self);
  self->held->model.swap(model);
  GST_OBJECT_UNLOCK(self);
}

void save_state(Edgelstm* self) {
  Held& held = *self->held;
  if (!held.model || held.kept_in.empty() || !held.moved) return;
  edgelstm_gst::write_state(held.kept_in, held.model->save());
  held.moved = false;
}

gboolean start(GstBaseTransform* transform) {
  Edgelstm* self = EDGELSTM(transform);
  Held& held = *self->held;
  GST_OBJECT_LOCK(self);
  edgelstm_gst::Settings settings = held.settings;
  std::string device = held.device, kept_in = held.state_file;
  double max_gap = held.max_gap;
  OnGap on_gap = held.on_gap;
  held.frames = held.gaps = 0;
  held.reset_wanted = false;
  GST_OBJECT_UNLOCK(self);
  held.missing.begin_anew();
  held.moved = held.outside_told = held.turned_told = false;
  held.failed = held.refused_told = false;
  return tried(self, [&] {
    if (device != "cpu") throw Fault(Kind::kSettings, "device", device, "cpu", "The C library runs on the processor; for a GPU: edgelstm run --device cuda, with a gst: source");
    auto model = std::make_shared<Model>(settings);
    std::string bytes;
    double age = kept_in.empty() ? NAN : edgelstm_gst::state_age(kept_in);
    // What is older is a gap, what lies ahead is of another clock.
    bool old = max_gap > 0 && (age > max_gap || age < -60);
    std::string found = old ? std::to_string(age) + " s old" : "";
    if (old && on_gap == kError) throw Fault(Kind::kRead, "state-file " + kept_in, found, "at most max-gap, " + std::to_string(max_gap) + " s", "Move it away to begin at the model's initial state");
    bool anew = old && on_gap == kReset;
    if (anew) GST_ELEMENT_WARNING(self, RESOURCE, SETTINGS, ("state-file %s: found %s; expected at most max-gap, %g s. The state begins anew", kept_in.c_str(), found.c_str(), max_gap), (nullptr));
    // As much more than it needs as another writer of .npz files may put around the same values.
    if (!anew && !kept_in.empty() && edgelstm_gst::read_state(kept_in, 2 * model->save().size() + 65536, &bytes)) {
      model->load(bytes, kept_in);
      GST_INFO_OBJECT(self, "goes on from %s", kept_in.c_str());
    }
    held.kept_in = kept_in;
    set_model(self, std::move(model));
  });
}

gboolean stop(GstBaseTransform* transform) {
  Edgelstm* self = EDGELSTM(transform);
  tried(self, [&] { save_state(self); });
  set_model(self, nullptr);
  return TRUE;  // else GStreamer says "very bad"; the error is posted
}

GstCaps* transform_caps(GstBaseTransform* transform, GstPadDirection direction, GstCaps* caps, GstCaps* filter) {
  Edgelstm* self = EDGELSTM(transform);
  GstCaps* made = nullptr;
  std::shared_ptr<Model> model = model_of(self);
  if (!model) {
    made = gst_static_pad_template_get_caps(direction == GST_PAD_SINK ? &src_template : &sink_template);
  } else if (!tried(self, [&] { made = direction == GST_PAD_SINK ? caps_after(*model, caps) : caps_before(*model, caps); })) {
    made = gst_caps_new_empty();
  }
  if (filter == nullptr) return made;
  GstCaps* both = gst_caps_intersect_full(filter, made, GST_CAPS_INTERSECT_FIRST);
  gst_caps_unref(made);
  return both;
}

// Whatever the templates allow: set_caps() says what is wrong with it.
gboolean accept_caps(GstBaseTransform*, GstPadDirection direction, GstCaps* caps) {
  GstCaps* all = gst_static_pad_template_get_caps(direction == GST_PAD_SINK ? &sink_template : &src_template);
  gboolean accepted = gst_caps_is_subset(caps, all);
  gst_caps_unref(all);
  return accepted;
}

gboolean set_caps(GstBaseTransform* transform, GstCaps* in, GstCaps* out) {
  Edgelstm* self = EDGELSTM(transform);
  Held& held = *self->held;
  if (!held.model) return FALSE;
  return tried(self, [&] {
    Format from = edgelstm_gst::read_caps(in), to = edgelstm_gst::read_caps(out);
    held.model->prepare(from.shapes, from.element, !from.video ? 0 : from.element == edgelstm_gst::Element::kUint16 ? 65535 : 255);
    size_t bytes = to.video ? to.bytes : held.model->tensor_bytes();
    if (bytes != to.bytes) throw Fault(Kind::kFrames, "other/tensors downstream", std::to_string(to.bytes) + " bytes", std::to_string(bytes));
    held.in = from, held.out = to;
    held.failed = false;
  });
}

gboolean get_unit_size(GstBaseTransform*, GstCaps* caps, gsize* size) {
  *size = edgelstm_gst::buffer_size(caps);
  return *size != 0;
}

// Whatever comes in: the input's size is looked at where the caps are in words.
gboolean transform_size(GstBaseTransform*, GstPadDirection, GstCaps*, gsize, GstCaps* other, gsize* size) {
  *size = edgelstm_gst::buffer_size(other);
  return *size != 0;
}

// Sources that can't give what the model takes end with "not negotiated" and no word why: here it is, as a warning.
gboolean query(GstBaseTransform* transform, GstPadDirection direction, GstQuery* query) {
  Edgelstm* self = EDGELSTM(transform);
  gboolean answered = GST_BASE_TRANSFORM_CLASS(edgelstm_parent_class)->query(transform, direction, query);
  if (!answered || direction != GST_PAD_SINK || GST_QUERY_TYPE(query) != GST_QUERY_CAPS || self->held->refused_told) return answered;
  std::shared_ptr<Model> model = model_of(self);
  if (!model) return answered;
  GstCaps *filter = nullptr, *result = nullptr;
  gst_query_parse_caps(query, &filter);
  gst_query_parse_caps_result(query, &result);
  if (filter == nullptr || result == nullptr || gst_caps_is_empty(filter) || !gst_caps_is_empty(result)) return answered;
  GstCaps* all = edgelstm_gst::caps_before(*model, filter);
  if (!gst_caps_can_intersect(filter, all) && !self->held->refused_told.exchange(true)) {
    gchar *found = gst_caps_to_string(filter), *expected = gst_caps_to_string(all);
    GST_ELEMENT_WARNING(self, STREAM, FORMAT, ("what comes: found %.300s; expected one of %.600s. Put videoconvert in front", found, expected), (nullptr));
    g_free(found), g_free(expected);
  }
  gst_caps_unref(all);
  return answered;
}

gboolean propose_allocation(GstBaseTransform* transform, GstQuery* decided, GstQuery* query) {
  if (!GST_BASE_TRANSFORM_CLASS(edgelstm_parent_class)->propose_allocation(transform, decided, query)) return FALSE;
  if (EDGELSTM(transform)->held->in.video) gst_query_add_allocation_meta(query, GST_VIDEO_META_API_TYPE, nullptr);
  return TRUE;
}

gboolean sink_event(GstBaseTransform* transform, GstEvent* event) {
  Edgelstm* self = EDGELSTM(transform);
  Held& held = *self->held;
  bool good = true;
  switch (GST_EVENT_TYPE(event)) {
    case GST_EVENT_FLUSH_STOP: {
      gboolean reset_time = TRUE;
      gst_event_parse_flush_stop(event, &reset_time);
      held.missing.begin_anew();
      held.failed = false;
      if (held.model) good = tried(self, [&] { held.model->reset(), held.moved = true; });
      break;
    }
    case GST_EVENT_GAP: {
      GstClockTime begin, length;
      gst_event_parse_gap(event, &begin, &length);
      GST_OBJECT_LOCK(self);
      double most = held.max_gap;
      GST_OBJECT_UNLOCK(self);
      bool short_one = most > 0 && GST_CLOCK_TIME_IS_VALID(length) && double(length) <= most * double(GST_SECOND);
      if (!short_one) held.missing.note("a GAP event");
      break;
    }
    case GST_EVENT_STREAM_START: {
      const gchar* name = nullptr;
      gst_event_parse_stream_start(event, &name);
      held.missing.stream(name);
      break;
    }
    case GST_EVENT_SEGMENT: {
      const GstSegment* segment;
      gst_event_parse_segment(event, &segment);
      if (segment->rate < 0)
        good = tried(self, [&] { throw Fault(Kind::kFrames, "a segment", "rate " + std::to_string(segment->rate), "frames in the order of their time", "Play forwards"); });
      break;
    }
    case GST_EVENT_TAG: {
      GstTagList* tags;
      gst_event_parse_tag(event, &tags);
      gchar* turned = nullptr;
      if (gst_tag_list_get_string(tags, GST_TAG_IMAGE_ORIENTATION, &turned) && strcmp(turned, "rotate-0") != 0 && !held.turned_told) {
        held.turned_told = true;
        GST_ELEMENT_WARNING(self, STREAM, FORMAT, ("pictures: found orientation %s; expected rotate-0. They go into the model as they were stored: put videoflip video-direction=auto in front", turned), (nullptr));
      }
      g_free(turned);
      break;
    }
    case GST_EVENT_EOS:
      good = tried(self, [&] { save_state(self); });
      break;
    default: break;
  }
  if (good) return GST_BASE_TRANSFORM_CLASS(edgelstm_parent_class)->sink_event(transform, event);
  gst_event_unref(event);
  return FALSE;
}

// With qos=true late frames are dropped before they are seen here.
GstFlowReturn submit_input_buffer(GstBaseTransform* transform, gboolean is_discont, GstBuffer* buffer) {
  GstFlowReturn flow = GST_BASE_TRANSFORM_CLASS(edgelstm_parent_class)->submit_input_buffer(transform, is_discont, buffer);
  if (flow == GST_BASE_TRANSFORM_FLOW_DROPPED) EDGELSTM(transform)->held->missing.note("a late frame dropped");
  return flow;
}

void judge(Edgelstm* self, const GstBuffer* buffer) {
  Held& held = *self->held;
  GST_OBJECT_LOCK(self);
  OnGap on_gap = held.on_gap;
  double most = held.max_gap;
  bool wanted = held.reset_wanted;
  held.reset_wanted = false;
  GST_OBJECT_UNLOCK(self);
  std::string gap = held.missing.before(buffer, most);
  if (wanted) held.model->reset(), held.moved = true;
  if (gap.empty()) return;
  GST_OBJECT_LOCK(self);
  held.gaps++;
  GST_OBJECT_UNLOCK(self);
  if (on_gap == kError) throw Fault(Kind::kFrames, "frames", gap, "frames without a gap", "on-gap=reset begins anew behind a gap, on-gap=hold goes on");
  if (on_gap == kReset) held.model->reset(), held.moved = true;
  const char* done = on_gap == kReset ? "reset" : "hold";
  GST_INFO_OBJECT(self, "gap before %" GST_TIME_FORMAT ": %s; %s", GST_TIME_ARGS(GST_BUFFER_PTS(buffer)), gap.c_str(), done);
  gst_element_post_message(GST_ELEMENT(self), gst_message_new_element(GST_OBJECT(self), gst_structure_new("edgelstm-gap", "reason", G_TYPE_STRING, gap.c_str(), "action", G_TYPE_STRING, done,
                                                                                                          "pts", G_TYPE_UINT64, GST_BUFFER_PTS(buffer), nullptr)));
}

GstFlowReturn transform(GstBaseTransform* transform, GstBuffer* in, GstBuffer* out) {
  Edgelstm* self = EDGELSTM(transform);
  Held& held = *self->held;
  if (held.failed) return GST_FLOW_ERROR;  // until a flush: a frame is missing in the state
  if (edgelstm_gst::is_outside(transform->segment, in)) {
    if (GST_BUFFER_FLAG_IS_SET(in, GST_BUFFER_FLAG_DISCONT)) held.missing.note("a discontinuity");
    return GST_BASE_TRANSFORM_FLOW_DROPPED;
  }
  bool good = held.model && tried(self, [&] {
    judge(self, in);
    std::string note;
    edgelstm_gst::step_buffer(held.model.get(), held.in, in, &note);
    held.moved = true;
    if (!note.empty()) GST_ELEMENT_WARNING(self, STREAM, FORMAT, ("%s", note.c_str()), (nullptr));
    GST_OBJECT_LOCK(self);
    held.frames++;
    GST_OBJECT_UNLOCK(self);
    float outside = NAN;
    if (held.out.video) {
      edgelstm_gst::Picture picture(held.out.info, out, GST_MAP_WRITE);
      held.model->picture(picture.rows(), picture.stride(), &outside);
    } else {
      edgelstm_gst::Mapped bytes(out, GST_MAP_WRITE);
      if (bytes->size < held.out.bytes) throw Fault(Kind::kRun, "a buffer for the output", std::to_string(bytes->size) + " bytes", std::to_string(held.out.bytes));
      held.model->tensor(bytes->data);
    }
    if (!std::isnan(outside) && !held.outside_told) {
      held.outside_told = true;
      GST_ELEMENT_WARNING(self, STREAM, FORMAT, ("pictures of output '%s': a value of %g lies outside what is black and white, and is cut off. range=LOW,HIGH says what these are",
                                                 held.model->output().name.c_str(), double(outside)), (nullptr));
    }
  });
  return good ? GST_FLOW_OK : GST_FLOW_ERROR;
}

void reset_action(Edgelstm* self) {
  GST_OBJECT_LOCK(self);
  self->held->reset_wanted = true;
  GST_OBJECT_UNLOCK(self);
}

std::string* text_property(Held* held, guint id) {
  switch (id) {
    case PROP_MODEL: return &held->settings.model;
    case PROP_DEVICE: return &held->device;
    case PROP_STATE_FILE: return &held->state_file;
    case PROP_OUTPUT: return &held->settings.output;
    case PROP_RANGE: return &held->settings.range;
    case PROP_ONNXRUNTIME: return &held->settings.onnxruntime;
    case PROP_OPERATORS: return &held->settings.operators;
    default: return nullptr;
  }
}

void set_property(GObject* object, guint id, const GValue* value, GParamSpec* spec) {
  Edgelstm* self = EDGELSTM(object);
  Held& held = *self->held;
  GST_OBJECT_LOCK(self);
  if (std::string* text = text_property(&held, id)) {
    const char* given = g_value_get_string(value);
    *text = given == nullptr ? "" : given;
  } else if (id == PROP_ON_GAP) {
    held.on_gap = OnGap(g_value_get_enum(value));
  } else if (id == PROP_MAX_GAP) {
    held.max_gap = g_value_get_double(value);
  } else if (id == PROP_LEAD) {
    held.settings.lead = g_value_get_uint(value);
  } else if (id == PROP_THREADS) {
    held.settings.threads = g_value_get_uint(value);
  } else {
    G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  }
  GST_OBJECT_UNLOCK(self);
}

void get_property(GObject* object, guint id, GValue* value, GParamSpec* spec) {
  Edgelstm* self = EDGELSTM(object);
  Held& held = *self->held;
  GST_OBJECT_LOCK(self);
  if (const std::string* text = text_property(&held, id)) g_value_set_string(value, text->c_str());
  else if (id == PROP_ON_GAP) g_value_set_enum(value, held.on_gap);
  else if (id == PROP_MAX_GAP) g_value_set_double(value, held.max_gap);
  else if (id == PROP_LEAD) g_value_set_uint(value, held.settings.lead);
  else if (id == PROP_THREADS) g_value_set_uint(value, held.settings.threads);
  else if (id == PROP_FRAMES) g_value_set_uint64(value, held.frames);
  else if (id == PROP_GAPS) g_value_set_uint64(value, held.gaps);
  else G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
  GST_OBJECT_UNLOCK(self);
}

void finalize(GObject* object) {
  delete EDGELSTM(object)->held;
  G_OBJECT_CLASS(edgelstm_parent_class)->finalize(object);
}

void edgelstm_init(Edgelstm* self) { self->held = new Held; }

void edgelstm_class_init(EdgelstmClass* kind) {
  auto object = G_OBJECT_CLASS(kind);
  auto element = GST_ELEMENT_CLASS(kind);
  auto base = GST_BASE_TRANSFORM_CLASS(kind);
  object->set_property = set_property, object->get_property = get_property, object->finalize = finalize;
  auto ready = GParamFlags(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS | GST_PARAM_MUTABLE_READY);
  auto playing = GParamFlags(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS | GST_PARAM_MUTABLE_PLAYING);
  auto told = GParamFlags(G_PARAM_READABLE | G_PARAM_STATIC_STRINGS);
  auto text = [&](guint id, const char* name, const char* blurb, const char* usual = "") { g_object_class_install_property(object, id, g_param_spec_string(name, name, blurb, usual, ready)); };
  text(PROP_MODEL, "model", "The step graph: an .onnx file as edgelstm export writes it");
  text(PROP_DEVICE, "device", "Where it runs: cpu is all there is", "cpu");
  text(PROP_STATE_FILE, "state-file", "The state is loaded from this file at the start, if it is there, and written to it at the end of the stream and at the stop");
  text(PROP_OUTPUT, "output", "Which output; empty: the first");
  text(PROP_RANGE, "range", "LOW,HIGH: the values of black and white in pictures; empty: those of the source for an output that is a frame, else 0,1 (0,255 of uint8)");
  text(PROP_ONNXRUNTIME, "onnxruntime", "The library of ONNX Runtime, or its folder; empty: $EDGELSTM_ONNXRUNTIME, the system's, the Python environment's");
  text(PROP_OPERATORS, "operators", "The library of edgelstm's operators, for models lowered to native; empty: $EDGELSTM_NATIVE_LIBRARY");
  g_object_class_install_property(object, PROP_ON_GAP, g_param_spec_enum("on-gap", "on-gap", "Where frames are missing: a discontinuity, a GAP event, time that goes back or jumps ahead by more than max-gap, another stream",
                                                                         on_gap_type(), kHold, playing));
  g_object_class_install_property(object, PROP_MAX_GAP, g_param_spec_double("max-gap", "max-gap", "Seconds from one frame to the next above which frames are missing; 0: only where that is said", 0, 1e9, 0, playing));
  g_object_class_install_property(object, PROP_LEAD, g_param_spec_uint("lead", "lead", "Pictures: which lead time of a forecast [K, C, H, W], from 1; 0: all side by side", 0, G_MAXINT, 0, ready));
  g_object_class_install_property(object, PROP_THREADS, g_param_spec_uint("threads", "threads", "Threads of ONNX Runtime; 0: all processors", 0, 1024, 0, ready));
  g_object_class_install_property(object, PROP_FRAMES, g_param_spec_uint64("frames", "frames", "Frames stepped since the start", 0, G_MAXUINT64, 0, told));
  g_object_class_install_property(object, PROP_GAPS, g_param_spec_uint64("gaps", "gaps", "Gaps since the start", 0, G_MAXUINT64, 0, told));
  g_signal_new_class_handler("reset", G_TYPE_FROM_CLASS(kind), GSignalFlags(G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION), G_CALLBACK(reset_action), nullptr, nullptr, nullptr, G_TYPE_NONE, 0);
  gst_element_class_add_static_pad_template(element, &sink_template);
  gst_element_class_add_static_pad_template(element, &src_template);
  gst_element_class_set_static_metadata(element, "edgelstm", "Filter/Analyzer/Video", "Steps a trained ConvLSTM or LSTM frame by frame and keeps its state", "The authors of edgelstm");
  base->start = start, base->stop = stop;
  base->transform_caps = transform_caps, base->accept_caps = accept_caps, base->set_caps = set_caps, base->get_unit_size = get_unit_size, base->transform_size = transform_size;
  base->query = query, base->propose_allocation = propose_allocation;
  base->sink_event = sink_event, base->submit_input_buffer = submit_input_buffer, base->transform = transform;
#if GST_CHECK_VERSION(1, 18, 0)
  gst_type_mark_as_plugin_api(on_gap_type(), GstPluginAPIFlags(0));
#endif
}

gboolean plugin_init(GstPlugin* plugin) {
  GST_DEBUG_CATEGORY_INIT(edgelstm_debug, "edgelstm", 0, "recurrent models, frame by frame");
  return gst_element_register(plugin, "edgelstm", GST_RANK_NONE, edgelstm_get_type());
}

}  // namespace

#if GST_CHECK_VERSION(1, 20, 0)
#define EDGELSTM_LICENSE "Apache 2.0"
#else
#define EDGELSTM_LICENSE GST_LICENSE_UNKNOWN  // older ones know it by no name
#endif
#define PACKAGE "edgelstm"
extern "C" {
// `edgelstm config --gst` looks for it.
__attribute__((used)) const char edgelstm_gst_sources[] = "edgelstm-gst-sources " EDGELSTM_SOURCES;
GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, edgelstm, "Recurrent models on live streams", plugin_init, "1", EDGELSTM_LICENSE, "edgelstm", "edgelstm")
}
