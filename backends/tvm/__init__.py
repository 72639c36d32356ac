"""The TVM backend: kernels, schedules, linking and running on ARM."""
