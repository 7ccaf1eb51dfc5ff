"""INT8 quantization. Nothing here knows the network: the scheme's name patterns tell what is quantized."""
