"""What runs in a factory: data, plans, training, and the PySyft server around them."""
