"""AutoFormer (Chen et al., ICCV 2021): the sizes of a vision transformer, searched with entangled weights."""
