"""The demo: a real model's KV cache shared between worker processes in 2-bit pages."""
