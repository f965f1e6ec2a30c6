"""What recipes are made of: configuration, images, stages, outcome and command line; a recipe adds its networks.

Import from the modules; none of them is loaded here, because most need torch.
"""
