"""Where samples come from: listing, manifests, and the one seam through which they are read."""
