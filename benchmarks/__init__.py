"""What Carousel is measured by; `python -m benchmarks`. Nothing here is needed to serve."""
