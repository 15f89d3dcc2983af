"""The native core of the parameter server and its TensorFlow operation, built on first use."""
