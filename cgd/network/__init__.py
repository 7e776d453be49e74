"""CGD itself: backbones, global descriptors, weights and checkpoints."""
