"""A ConvLSTM step as one kernel: implicit GEMM on tensor cores, the gates in its epilogue."""
