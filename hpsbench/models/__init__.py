"""DLRM, its variants, and the Triton model repository that serves them."""
