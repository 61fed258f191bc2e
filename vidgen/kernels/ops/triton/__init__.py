"""The Triton kernels behind the ops; imported by an op when it first runs on a GPU, never before."""
