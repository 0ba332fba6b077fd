"""Image quality with its unit, mask and confidence interval; definitions are frozen and cited."""
