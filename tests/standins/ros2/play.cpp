// What rclcpp does for the node of docs/ros2.md, as far as a test needs it: parameters are `name:=value`, and `spin` plays pictures from standard
// input (a line with the stamp in milliseconds, width, height, step and encoding, then the bytes), and writes what is published.
#include <iostream>
#include <map>
#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/image.hpp>

using sensor_msgs::msg::Image;

namespace rclcpp {

std::string& parameter(const std::string& name) {
  static std::map<std::string, std::string> all;
  return all[name];
}

template <>
void Publisher<Image>::played(const Image& message) {
  std::cout.write(reinterpret_cast<const char*>(message.data.data()), std::streamsize(message.data.size()));
}

void init(int count, char** arguments) {
  for (int k = 1; k < count; k++) {
    std::string text = arguments[k];
    size_t place = text.find(":=");
    if (place != std::string::npos) parameter(text.substr(0, place)) = text.substr(place + 2);
  }
}

void spin(std::shared_ptr<Node>) {
  long stamp;
  for (auto picture = std::make_shared<Image>(); std::cin >> stamp >> picture->width >> picture->height >> picture->step >> picture->encoding; picture = std::make_shared<Image>()) {
    picture->header.stamp.sec = int32_t(stamp / 1000), picture->header.stamp.nanosec = uint32_t(stamp % 1000 * 1000000);
    picture->data.resize(size_t(picture->step) * picture->height);
    std::cin.get();
    std::cin.read(reinterpret_cast<char*>(picture->data.data()), std::streamsize(picture->data.size()));
    Subscription<Image>::callback()(picture);
  }
}

void shutdown() {}

}  // namespace rclcpp
