"""Which tensor is quantized how, per target; observers, fake quantization, the steps of PTQ."""
