"""Images in memory: decode, resize, crop, augment, grid."""
