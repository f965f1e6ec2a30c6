"""GLiT (Chen et al., ICCV 2021): how much of each transformer block is attention and how much convolution."""
