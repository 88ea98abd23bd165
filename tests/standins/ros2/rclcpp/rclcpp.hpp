// As much of ROS 2's rclcpp as the node of docs/ros2.md names, with the signatures of Humble to Jazzy: enough to compile it. `spin`
// plays the pictures of a test: files named on the command line are not part of ROS.
#pragma once
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>

#include <builtin_interfaces.hpp>

namespace rclcpp {

class Duration {
 public:
  explicit Duration(int64_t nanoseconds) : nanoseconds_(nanoseconds) {}
  double seconds() const { return double(nanoseconds_) / 1e9; }

 private:
  int64_t nanoseconds_;
};

class Time {
 public:
  Time() = default;
  Time(const builtin_interfaces::msg::Time& stamp) : nanoseconds_(int64_t(stamp.sec) * 1000000000 + stamp.nanosec) {}
  Duration operator-(const Time& other) const { return Duration(nanoseconds_ - other.nanoseconds_); }

 private:
  int64_t nanoseconds_ = 0;
};

struct KeepLast {
  explicit KeepLast(size_t depth) : depth(depth) {}
  size_t depth;
};

class QoS {
 public:
  QoS(const KeepLast&) {}
  QoS& reliable() { return *this; }
};
struct SensorDataQoS : QoS {
  SensorDataQoS() : QoS(KeepLast(5)) {}
};

struct Logger {};
struct Clock {};

template <class Message>
class Publisher {
 public:
  using SharedPtr = std::shared_ptr<Publisher>;
  void publish(std::unique_ptr<Message> message) { played(*message); }
  static void played(const Message& message);  // by the test
};

template <class Message>
class Subscription {
 public:
  using SharedPtr = std::shared_ptr<Subscription>;
  using Callback = std::function<void(std::shared_ptr<const Message>)>;
  static Callback& callback() {
    static Callback one;
    return one;
  }
};

std::string& parameter(const std::string& name);  // by the test

class Node {
 public:
  explicit Node(const std::string&) {}
  virtual ~Node() = default;
  template <class Value>
  Value declare_parameter(const std::string& name, const Value& usual);
  template <class Message>
  typename Publisher<Message>::SharedPtr create_publisher(const std::string&, const QoS&) { return std::make_shared<Publisher<Message>>(); }
  template <class Message, class Callback>
  typename Subscription<Message>::SharedPtr create_subscription(const std::string&, const QoS&, Callback&& callback) {
    Subscription<Message>::callback() = callback;
    return std::make_shared<Subscription<Message>>();
  }
  Logger get_logger() const { return {}; }
  std::shared_ptr<Clock> get_clock() { return std::make_shared<Clock>(); }
};

template <> inline std::string Node::declare_parameter(const std::string& name, const std::string& usual) { return parameter(name).empty() ? usual : parameter(name); }
template <> inline int64_t Node::declare_parameter(const std::string& name, const int64_t& usual) { return parameter(name).empty() ? usual : std::stoll(parameter(name)); }
template <> inline double Node::declare_parameter(const std::string& name, const double& usual) { return parameter(name).empty() ? usual : std::stod(parameter(name)); }
template <> inline bool Node::declare_parameter(const std::string& name, const bool& usual) { return parameter(name).empty() ? usual : parameter(name) == "true"; }

void init(int count, char** arguments);
void spin(std::shared_ptr<Node> node);
void shutdown();

__attribute__((format(printf, 2, 3))) inline void told(const char* kind, const char* format, ...) {
  va_list values;
  va_start(values, format);
  fprintf(stderr, "%s ", kind);
  vfprintf(stderr, format, values);
  fprintf(stderr, "\n");
  va_end(values);
}

}  // namespace rclcpp

#define RCLCPP_WARN(logger, ...) ((void)(logger), rclcpp::told("WARN", __VA_ARGS__))
#define RCLCPP_ERROR(logger, ...) ((void)(logger), rclcpp::told("ERROR", __VA_ARGS__))
#define RCLCPP_ERROR_THROTTLE(logger, clock, milliseconds, ...) ((void)(logger), (void)(clock), (void)(milliseconds), rclcpp::told("ERROR", __VA_ARGS__))
