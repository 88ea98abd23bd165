# To build the plugin for a Jetson on a PC: g++-aarch64-linux-gnu, this machine's nvcc, and the Jetson's CUDA runtime in
# EDGELSTM_CUDA_TARGET. That is a folder with include/ and lib/libcudart_static.a for 64-bit Arm, of nvcc's version:
# targets/sbsa-linux of a CUDA toolkit with cross packages (aarch64-linux before CUDA 13), or nvidia/cu13 in DIR after
#
#   pip install --target DIR --platform manylinux2014_aarch64 --only-binary=:all: --no-deps nvidia-cuda-runtime==13.0.*

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
