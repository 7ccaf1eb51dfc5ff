"""Images with labels, their transforms and the batches that training, calibration and validation see."""
