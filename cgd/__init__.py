"""CGD: "Combination of Multiple Global Descriptors for Image Retrieval" (arXiv:1903.10663) in MXNet/Gluon."""
