"""LocalViT (Li et al., 2021): which transformer blocks see locally, by a depthwise convolution in the feed-forward."""
