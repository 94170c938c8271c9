"""From a file of sensor readings to the tensors of training: read, check, window, split, sum."""
