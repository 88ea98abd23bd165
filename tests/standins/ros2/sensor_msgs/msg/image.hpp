// sensor_msgs/Image with std_msgs/Header, as rosidl generates them.
#pragma once
#include <builtin_interfaces.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace std_msgs {
namespace msg {
struct Header {
  builtin_interfaces::msg::Time stamp;
  std::string frame_id;
};
}  // namespace msg
}  // namespace std_msgs

namespace sensor_msgs {
namespace msg {
struct Image {
  using ConstSharedPtr = std::shared_ptr<const Image>;
  std_msgs::msg::Header header;
  uint32_t height = 0, width = 0;
  std::string encoding;
  uint8_t is_bigendian = 0;
  uint32_t step = 0;
  std::vector<uint8_t> data;
};
}  // namespace msg
}  // namespace sensor_msgs
